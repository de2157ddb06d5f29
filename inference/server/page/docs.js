// openapi.json as headings and tables: FastAPI's own page fetches its code from a network
function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function table(properties) {
  const made = document.createElement("table");
  for (const [name, field] of Object.entries(properties)) {
    const row = document.createElement("tr");
    const kind = field.type || (field.enum || []).join(", ") || "";
    const given = field.default === undefined || field.default === null ? "" : `default ${field.default}`;
    for (const text of [name, kind, given, field.description || field.format || ""]) row.append(element("td", text));
    made.append(row);
  }
  return made;
}

async function show() {
  const place = document.getElementById("paths");
  const api = await (await fetch("/openapi.json")).json();
  for (const [path, verbs] of Object.entries(api.paths)) {
    for (const [verb, about] of Object.entries(verbs)) {
      place.append(element("h2", `${verb.toUpperCase()} ${path}`), element("p", about.description || ""));
      for (const content of Object.values(about.requestBody?.content || {})) {
        place.append(table(content.schema.properties || {}));
      }
    }
  }
}

show();
