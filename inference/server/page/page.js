// The form: a prompt, settings, and as many versions as are asked for.

import { Version } from "./version.js";
import { wav } from "./wav.js";

const FIRST = ["duration", "seed", "temperature"]; // settings that are always seen
const HIDDEN = ["format", "stream", "text"]; // those that the page chooses
const LONGEST_RECORDING_S = 20;

const get = (id) => document.getElementById(id);
let prompt = null; // Blob
let model = null; // what the server says of itself
let versions = [];
let stopper = null; // AbortController of what is being made
let recording = null;

function complain(message) {
  get("problem").textContent = message;
  get("problem").hidden = !message;
}

function ask(path, options = {}) {
  const token = sessionStorage.getItem("token");
  return fetch(path, { ...options, headers: token ? { Authorization: `Bearer ${token}` } : {} });
}

async function meet() {
  const response = await ask("/v1/model");
  get("door").hidden = response.status !== 401;
  get("go").disabled = !response.ok;
  if (!response.ok) {
    complain((await response.json()).error.message);
    return;
  }
  complain("");
  model = await response.json();
  const { sample_rate: rate, frame_rate: frames, num_codebooks: count } = model;
  get("model").textContent =
    `Model ${model.model}, codec ${model.codec}: ${rate} Hz, ${frames} frames of ${count} codes a second. ` +
    `At most ${model.limits.max_duration} s at a time.`;
  get("say").hidden = !model.speaks_text;
  showSettings();
}

function showSettings() {
  document.querySelectorAll(".setting").forEach((field) => field.remove());
  for (const [name, about] of Object.entries(model.settings)) {
    if (HIDDEN.includes(name) || (name === "guidance" && !model.speaks_text)) continue;
    const field = document.createElement("div");
    field.className = "field setting";
    const label = document.createElement("label");
    const input = document.createElement("input");
    input.id = label.htmlFor = `setting-${name}`;
    input.name = name;
    if (about.type === "boolean") {
      input.type = "checkbox";
      input.checked = about.default;
    } else {
      input.inputMode = "decimal";
      input.value = about.default ?? (name === "duration" ? 8 : "");
    }
    label.textContent = `${name.replaceAll("_", " ")}: ${about.description ?? ""}`;
    if (name === "seed") label.textContent = "seed of the first version";
    if (name === "duration") label.textContent = "seconds to make (empty: until it ends)";
    field.append(label, input);
    if (FIRST.includes(name)) get("versions").parentElement.parentElement.append(field);
    else get("more").append(field);
  }
}

function usePrompt(blob, name) {
  prompt = blob;
  get("forget").hidden = !blob;
  get("prompt-name").textContent = blob ? name : "None: the model begins by itself. Record, choose, or drop a recording here.";
  const sound = get("prompt-sound");
  if (sound.src) URL.revokeObjectURL(sound.src);
  sound.hidden = !blob;
  if (blob) sound.src = URL.createObjectURL(blob);
  else sound.removeAttribute("src");
}

async function startRecording() {
  const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 };
  const stream = await navigator.mediaDevices.getUserMedia({ audio });
  const context = new AudioContext();
  await context.audioWorklet.addModule("/page/audio.js");
  const node = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0 });
  const pieces = [];
  node.port.onmessage = ({ data }) => {
    if (!recording) return; // it was stopped meanwhile
    pieces.push(data);
    const seconds = (pieces.length * data.length) / context.sampleRate;
    get("prompt-name").textContent = `Recording: ${seconds.toFixed(1)} s`;
    if (seconds >= LONGEST_RECORDING_S) stopRecording();
  };
  recording = { stream, context, pieces };
  context.createMediaStreamSource(stream).connect(node);
  get("record").setAttribute("aria-pressed", "true");
  get("record").textContent = "Stop recording";
}

function stopRecording() {
  if (!recording) return;
  const { stream, context, pieces } = recording;
  recording = null;
  stream.getTracks().forEach((track) => track.stop());
  context.close();
  get("record").setAttribute("aria-pressed", "false");
  get("record").textContent = "Record";
  usePrompt(wav(pieces, context.sampleRate), "Your recording");
}

get("record").addEventListener("click", async () => {
  complain("");
  try {
    if (recording) stopRecording();
    else await startRecording();
  } catch (error) {
    complain(`No microphone: ${error.message}. A page that was not loaded from this machine needs https to use one.`);
  }
});

get("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) usePrompt(file, file.name);
  event.target.value = "";
});
get("forget").addEventListener("click", () => usePrompt(null));

for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    get("prompt").classList.toggle("over", kind === "dragover");
    const [file] = event.dataTransfer?.files ?? [];
    if (kind === "drop" && file) usePrompt(file, file.name);
  });

get("door").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", get("token").value);
  meet();
});

function wishOf(seed) {
  const form = new FormData();
  for (const input of document.querySelectorAll(".setting input"))
    if (input.type === "checkbox") form.set(input.name, input.checked);
    else if (input.value.trim() !== "") form.set(input.name, input.value.trim());
  form.set("seed", seed);
  form.set("format", "jsonl");
  if (!get("say").hidden && get("text").value.trim()) form.set("text", get("text").value.trim());
  if (prompt) form.set("audio", prompt, "prompt");
  return form;
}

get("wish").addEventListener("submit", async (event) => {
  event.preventDefault();
  complain("");
  if (recording) stopRecording();
  versions.forEach((version) => version.release());
  const first = Number(get("setting-seed").value) || 0;
  const count = Math.max(1, Math.min(4, Number(get("versions").value) || 1));
  const silenceOthers = (one) => versions.forEach((other) => other !== one && other.plays && other.play(false));
  versions = Array.from({ length: count }, (_, i) => new Version(first + i, silenceOthers));
  get("results").replaceChildren(...versions.map((version) => version.article));
  get("results-title").hidden = false;
  const mine = (stopper = new AbortController());
  get("stop").disabled = false;
  await Promise.all(
    versions.map((version, i) => {
      version.wantedS = Number(get("setting-duration").value) || 0;
      const body = wishOf(version.seed);
      const send = () => ask("/v1/continuations", { method: "POST", body, signal: mine.signal });
      return version.make(send, i === 0);
    }),
  );
  if (stopper === mine) get("stop").disabled = true;
});

get("stop").addEventListener("click", () => stopper?.abort());

meet().catch((error) => complain(`The server does not answer: ${error.message}`));
