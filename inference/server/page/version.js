// One continuation on the page: it is drawn, played and kept while it comes.

import { Spectrum } from "./spectrum.js";
import { samplesOf, wav } from "./wav.js";

let context = null; // of all players

async function audioContext(sampleRate) {
  // the codec's rate: nothing is resampled
  if (!context) {
    context = new AudioContext({ sampleRate });
    context.ready = context.audioWorklet.addModule("/page/audio.js");
  }
  await context.ready;
  return context;
}

export class Version {
  constructor(seed, onPlay) {
    this.seed = seed;
    this.article = document.getElementById("version").content.firstElementChild.cloneNode(true);
    this.find = (name) => this.article.querySelector(name);
    this.onPlay = onPlay; // the others are silent then
    this.pieces = []; // Float32Array
    this.bits = []; // of each frame, [K]
    this.numSamples = this.position = this.underruns = 0;
    this.plays = this.isWhole = this.isStale = false;
    this.shownS = 0; // seconds from left to right
    this.find("h3").textContent = `Seed ${seed}`;
    this.find(".play").addEventListener("click", () => this.play(!this.plays));
    this.find(".place").addEventListener("input", (event) => this.seek(Number(event.target.value)));
    this.find(".place").setAttribute("aria-label", `place in the version of seed ${seed}, seconds`);
    this.find(".tracks").addEventListener("click", (event) => {
      const { left, width } = this.find(".tracks").getBoundingClientRect();
      this.seek(((event.clientX - left) / width) * this.shownS);
    });
    new ResizeObserver(() => this.draw()).observe(this.article);
    this.say("waiting");
  }

  async make(ask, plays) {
    // ask: () -> Promise<Response>. Fills the version until the server ends it; what goes wrong is said.
    const asked = performance.now();
    try {
      const response = await ask();
      for await (const message of lines(response)) {
        if (message.error) throw new Error(message.error.message);
        if (message.sample_rate) await this.begin(message, plays);
        if (message.audio !== undefined) this.add(message, asked);
        if (message.finish_reason) this.end(message.finish_reason);
      }
      if (!this.isWhole) throw new Error("the connection broke off");
    } catch (error) {
      this.end(error.name === "AbortError" ? "stopped" : error.message);
    }
  }

  async begin(about, plays) {
    this.about = about;
    this.spectrum = new Spectrum(about.sample_rate);
    const context = await audioContext(about.sample_rate);
    this.node = new AudioWorkletNode(context, "player", { numberOfInputs: 0, outputChannelCount: [1] });
    this.node.port.onmessage = ({ data }) => this.told(data);
    this.node.connect(context.destination);
    this.find(".play").disabled = false;
    if (plays) this.play(true);
  }

  add({ audio, bits }, asked) {
    const samples = samplesOf(audio);
    if (samples.length) {
      this.firstS ??= (performance.now() - asked) / 1000;
      this.pieces.push(samples);
      this.numSamples += samples.length;
      this.spectrum.add(samples);
      this.node.port.postMessage({ samples });
    }
    this.bits.push(...bits);
    this.say("speaking");
    this.refresh();
  }

  end(reason) {
    this.isWhole = true;
    this.node?.port.postMessage({ isWhole: true });
    this.say({ length: "done", eos: "it came to its end", cancelled: "stopped" }[reason] ?? reason);
    if (this.numSamples) {
      const link = this.find(".save");
      link.href = URL.createObjectURL(wav(this.pieces, this.about.sample_rate));
      link.download = `codeclm-seed-${this.seed}.wav`;
      link.hidden = false;
    }
    this.refresh();
  }

  async play(plays) {
    if (!this.node) return;
    if (plays) {
      await this.node.context.resume();
      this.onPlay(this);
      if (this.isWhole && this.position >= this.numSamples) this.seek(0);
    }
    this.told({ position: this.position, plays });
    this.node.port.postMessage({ plays });
  }

  seek(seconds) {
    if (!this.about) return;
    this.position = Math.min(this.numSamples, Math.max(0, Math.round(seconds * this.about.sample_rate)));
    this.node.port.postMessage({ seek: this.position });
    this.refresh();
  }

  told({ position, plays, ranDry }) {
    if (ranDry) this.underruns++;
    if (plays !== this.plays) this.find(".play").textContent = plays ? "Pause" : "Play";
    const moved = position !== this.position || plays !== this.plays;
    [this.position, this.plays] = [position, plays];
    if (moved) this.refresh();
  }

  release() {
    this.node?.disconnect();
    const { href } = this.find(".save");
    if (href) URL.revokeObjectURL(href);
  }

  get seconds() {
    return this.about ? this.numSamples / this.about.sample_rate : 0;
  }

  say(state) {
    const parts = [state];
    if (this.numSamples) {
      const frames = this.bits.length;
      const total = this.bits.flat().reduce((sum, value) => sum + value, 0);
      parts.push(`${this.seconds.toFixed(1)} s`, `${((total / frames) * this.about.frame_rate).toFixed(0)} bits/s`);
      parts.push(`first sound after ${this.firstS.toFixed(2)} s`);
    }
    if (this.underruns) parts.push(`the sound stopped ${this.underruns} times to wait`);
    this.find(".status").textContent = parts.join(" · ");
  }

  refresh() {
    if (this.isStale) return;
    this.isStale = true;
    requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.isStale = false;
    if (!this.about) return;
    this.shownS = Math.max(this.wantedS ?? 0, this.seconds, this.bits.length / this.about.frame_rate, 1);
    this.drawSpectrogram(fit(this.find(".spectrogram")));
    this.drawSurprise(fit(this.find(".surprise")));
    const seconds = this.position / this.about.sample_rate;
    this.find(".cursor").style.left = `${(100 * seconds) / this.shownS}%`;
    const place = this.find(".place");
    place.max = this.seconds.toFixed(2);
    place.value = seconds.toFixed(2);
    place.setAttribute("aria-valuetext", `${seconds.toFixed(1)} of ${this.seconds.toFixed(1)} seconds`);
  }

  drawSpectrogram({ context, width, height }) {
    const { picture, columns, hop } = this.spectrum;
    const shown = ((columns * hop) / this.about.sample_rate / this.shownS) * width;
    if (columns) context.drawImage(picture, 0, 0, columns, picture.height, 0, 0, shown, height);
  }

  drawSurprise({ context, width, height }) {
    const { num_codebooks: count, codebook_size: size, frame_rate: rate } = this.about;
    const full = 1.2 * count * Math.log2(size); // a little above what a code costs without a model
    const step = width / (this.shownS * rate);
    this.bits.forEach((frame, index) => {
      let bottom = height;
      frame.forEach((value, k) => {
        const tall = (value / full) * height;
        context.fillStyle = `hsl(${215 - (190 * k) / Math.max(1, frame.length - 1)} 70% 52%)`;
        context.fillRect(index * step, bottom - tall, Math.max(1, step - 0.5), tall);
        bottom -= tall;
      });
    });
  }
}

function fit(canvas) {
  // as many pixels as the screen shows
  const scale = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return { context, width, height };
}

async function* lines(response) {
  // objects of a reply in lines of JSON, as they come
  if (!response.ok) throw new Error((await response.json()).error.message);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const found = (rest + value).split("\n");
    rest = found.pop();
    for (const line of found) yield JSON.parse(line);
  }
}
