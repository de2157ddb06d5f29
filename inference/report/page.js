"use strict";
// Draws the tracks of each recording and moves one cursor over them while it plays. Times in seconds.

const HEIGHTS = { wave: 44, spectrogram: 150, surprise: 110, codes: 90 };
const PIXELS_PER_SECOND = 30; // at least; a longer recording scrolls
const TINY = 1e-9; // keeps a division from 0

const probe = document.body.appendChild(document.createElement("span"));
function colour(name) {
  probe.style.color = `var(${name})`; // light-dark() has a value only where it is used
  return getComputedStyle(probe).color;
}
const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

function ramp(points) {
  // [[r, g, b], ...] -> 256 colours between them
  return Array.from({ length: 256 }, (_, index) => {
    const place = (index / 255) * (points.length - 1);
    const low = Math.min(Math.floor(place), points.length - 2);
    return points[low].map((value, channel) => value + (place - low) * (points[low + 1][channel] - value));
  });
}
const HEAT = ramp([[0, 0, 4], [60, 15, 110], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]]);

function codebookColour(k, count) {
  return `hsl(${215 - (190 * k) / Math.max(1, count - 1)} 70% 52%)`;
}

class Sound {
  constructor(section) {
    this.data = JSON.parse(section.querySelector("script[type='application/json']").textContent);
    this.audio = section.querySelector("audio");
    this.tracks = section.querySelector(".tracks");
    this.cursor = section.querySelector(".cursor");
    this.readout = section.querySelector(".readout");
    this.words = [...section.querySelectorAll(".words button")];
    this.stopAt = null;
    this.tracks.addEventListener("click", (event) => this.seek(this.timeAt(event.clientX)));
    this.tracks.addEventListener("mousemove", (event) => this.tell(this.timeAt(event.clientX)));
    this.tracks.addEventListener("keydown", (event) => this.key(event));
    for (const button of section.querySelectorAll("[data-from]"))
      button.addEventListener("click", () => this.play(Number(button.dataset.from), Number(button.dataset.to)));
    for (const name of ["seeked", "timeupdate", "loadedmetadata"]) this.audio.addEventListener(name, () => this.move());
    this.audio.addEventListener("play", () => this.follow());
    new ResizeObserver(() => this.draw()).observe(this.tracks.parentElement);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  timeAt(clientX) {
    const left = this.tracks.getBoundingClientRect().left - this.tracks.scrollLeft;
    return Math.max(0, Math.min(this.data.seconds, ((clientX - left) / this.width) * this.data.seconds));
  }

  seek(time) {
    this.stopAt = null;
    this.audio.currentTime = time;
    this.move();
  }

  play(from, to) {
    for (const other of document.querySelectorAll("audio")) if (other !== this.audio) other.pause();
    this.audio.currentTime = from;
    this.stopAt = to;
    this.audio.play();
  }

  follow() {
    const next = () => {
      if (this.stopAt !== null && this.audio.currentTime >= this.stopAt) {
        this.stopAt = null;
        this.audio.pause();
      }
      this.move();
      if (!this.audio.paused) requestAnimationFrame(next);
    };
    requestAnimationFrame(next);
  }

  key(event) {
    const step = event.shiftKey ? 1 : 1 / (this.data.frame_rate || 10);
    const now = this.audio.currentTime;
    const moves = { ArrowLeft: now - step, ArrowRight: now + step, Home: 0, End: this.data.seconds };
    if (event.key in moves) this.seek(Math.max(0, Math.min(this.data.seconds, moves[event.key])));
    else if (event.key === " ") this.audio.paused ? this.audio.play() : this.audio.pause();
    else return;
    event.preventDefault();
  }

  move() {
    const time = this.audio.currentTime;
    const place = (time / this.data.seconds) * this.width;
    this.cursor.style.left = `${place}px`;
    const { scrollLeft, clientWidth } = this.tracks;
    if (!this.audio.paused && (place < scrollLeft || place > scrollLeft + clientWidth)) this.tracks.scrollLeft = place - 20;
    for (const word of this.words)
      word.classList.toggle("now", time >= Number(word.dataset.from) && time < Number(word.dataset.to));
    this.tell(time);
  }

  tell(time) {
    const parts = [`${time.toFixed(2)} s`];
    const { surprise, frame_rate: rate, pitch } = this.data;
    if (surprise) {
      const frame = Math.min(surprise[0].length - 1, Math.floor(time * rate));
      const bits = surprise.map((row) => row[frame]);
      parts.push(`${bits.reduce((a, b) => a + b, 0).toFixed(1)} bits (${bits.map((b) => b.toFixed(1)).join(" + ")})`);
    }
    const hz = pitch && pitch[Math.min(pitch.length - 1, Math.floor(time * 100))];
    if (hz) parts.push(`${hz.toFixed(0)} Hz`);
    this.readout.textContent = parts.join(" · ");
    this.tracks.setAttribute("aria-valuenow", time.toFixed(2));
    this.tracks.setAttribute("aria-valuetext", parts.join(", "));
  }

  draw() {
    const shown = this.tracks.parentElement.clientWidth;
    if (!shown) return;
    const styles = getComputedStyle(this.tracks.parentElement);
    const inner = shown - parseFloat(styles.paddingLeft) - parseFloat(styles.paddingRight);
    this.width = Math.max(inner, Math.round(this.data.seconds * PIXELS_PER_SECOND));
    const scale = window.devicePixelRatio || 1;
    for (const canvas of this.tracks.querySelectorAll("canvas")) {
      const height = HEIGHTS[canvas.dataset.track];
      canvas.style.width = `${this.width}px`;
      canvas.style.height = `${height}px`;
      canvas.width = this.width * scale;
      canvas.height = height * scale;
      const context = canvas.getContext("2d");
      context.scale(scale, scale);
      this[canvas.dataset.track](context, this.width, height);
    }
    this.move();
  }

  wave(context, width, height) {
    const peaks = bytes(this.data.wave); // largest magnitude of each piece, 0..255
    context.fillStyle = colour("--wave");
    for (let i = 0; i < peaks.length; i++) {
      const half = Math.max(0.5, (peaks[i] / 255) * (height / 2));
      context.fillRect((i / peaks.length) * width, height / 2 - half, Math.max(1, width / peaks.length), 2 * half);
    }
    if (this.data.prompt_s > 0) {
      context.fillStyle = colour("--mark");
      context.fillRect((this.data.prompt_s / this.data.seconds) * width - 1, 0, 2, height);
    }
  }

  spectrogram(context, width, height) {
    const { bands, columns, levels, top_hz: top, hz } = this.data.spectrogram;
    const values = bytes(levels); // [columns, bands], lowest band first
    const image = new ImageData(columns, bands);
    for (let column = 0; column < columns; column++)
      for (let band = 0; band < bands; band++) {
        const [r, g, b] = HEAT[values[column * bands + band]];
        image.data.set([r, g, b, 255], 4 * ((bands - 1 - band) * columns + column));
      }
    const small = new OffscreenCanvas(columns, bands);
    small.getContext("2d").putImageData(image, 0, 0);
    context.drawImage(small, 0, 0, width, height);
    const mel = (f) => Math.log10(1 + f / 700);
    const y = (f) => height * (1 - mel(f) / mel(top));
    context.font = "11px system-ui";
    context.fillStyle = "#ffffffcc";
    for (const tick of hz) context.fillText(tick >= 1000 ? `${tick / 1000} kHz` : `${tick} Hz`, 4, y(tick) + 4);
    const line = (track, rate, name, size) => {
      context.fillStyle = colour(name);
      track.forEach((f, i) => f && context.fillRect((i / rate / this.data.seconds) * width, y(f) - size / 2, size, size));
    };
    for (const formant of this.data.formants || []) line(formant, 100, "--formant", 1.5);
    if (this.data.pitch) line(this.data.pitch, 100, "--pitch", 2);
  }

  surprise(context, width, height) {
    const rows = this.data.surprise;
    const frames = rows[0].length;
    const totals = Array.from({ length: frames }, (_, t) => rows.reduce((sum, row) => sum + row[t], 0));
    const most = Math.max(...totals) + TINY;
    const step = (width * frames) / this.data.frame_rate / this.data.seconds / frames;
    totals.forEach((_, t) => {
      let base = height;
      rows.forEach((row, k) => {
        const size = (row[t] / most) * (height - 14);
        context.fillStyle = codebookColour(k, rows.length);
        context.fillRect(t * step, base - size, Math.max(1, step - 0.5), size);
        base -= size;
      });
    });
    context.font = "11px system-ui";
    context.fillStyle = colour("--ink");
    context.fillText(`surprise, up to ${most.toFixed(0)} bits a frame`, 4, 11);
  }

  codes(context, width, height) {
    const rows = this.data.codes;
    const step = width / this.data.frame_rate / this.data.seconds;
    const tall = height / rows.length;
    rows.forEach((row, k) =>
      row.forEach((code, t) => {
        context.fillStyle = `hsl(${(code * 137.508) % 360} 45% ${35 + ((code * 7) % 30)}%)`;
        context.fillRect(t * step, k * tall, Math.max(1, step), tall - 1);
      }),
    );
  }
}

for (const section of document.querySelectorAll(".sound")) new Sound(section);
