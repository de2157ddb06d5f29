// Columns of a mel spectrogram, as samples come.

const BANDS = 64;
const SIZE = 512; // samples of a window
const FLOOR_DB = -80; // black
const TOP_DB = -10; // white

// black, violet, red, yellow, near white
const HEAT = [[0, 0, 4], [60, 15, 110], [140, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]];

const mel = (hz) => 2595 * Math.log10(1 + hz / 700);
const hz = (value) => 700 * (10 ** (value / 2595) - 1);

export class Spectrum {
  constructor(sampleRate, columnsPerSecond = 100) {
    this.hop = Math.round(sampleRate / columnsPerSecond);
    this.window = Float32Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));
    this.rest = new Float32Array(SIZE); // the last samples, silence before the first
    this.bands = triangles(sampleRate);
    this.columns = 0;
    this.picture = document.createElement("canvas"); // a column a pixel, wider than what is filled
    this.picture.height = BANDS;
    this.picture.width = 1024;
  }

  add(samples) {
    const all = new Float32Array(this.rest.length + samples.length);
    all.set(this.rest);
    all.set(samples, this.rest.length);
    let start = 0;
    for (; start + SIZE + this.hop <= all.length; start += this.hop) this.draw(all.subarray(start + this.hop, start + this.hop + SIZE));
    this.rest = all.slice(start);
  }

  draw(samples) {
    if (this.columns === this.picture.width) this.widen();
    const real = samples.map((sample, i) => sample * this.window[i]);
    const imaginary = new Float32Array(SIZE);
    transform(real, imaginary);
    const context = this.picture.getContext("2d");
    const pixels = context.createImageData(1, BANDS);
    this.bands.forEach((weights, band) => {
      let power = 1e-12;
      for (const [bin, weight] of weights) power += weight * (real[bin] ** 2 + imaginary[bin] ** 2);
      const db = 10 * Math.log10((16 * power) / SIZE ** 2);
      const colour = heat((db - FLOOR_DB) / (TOP_DB - FLOOR_DB));
      pixels.data.set([...colour, 255], 4 * (BANDS - 1 - band));
    });
    context.putImageData(pixels, this.columns++, 0);
  }

  widen() {
    const wide = document.createElement("canvas");
    wide.height = BANDS;
    wide.width = 2 * this.picture.width;
    wide.getContext("2d").drawImage(this.picture, 0, 0);
    this.picture = wide;
  }
}

function triangles(sampleRate) {
  // of each band: [bin, weight] pairs
  const top = mel(sampleRate / 2);
  const edges = Array.from({ length: BANDS + 2 }, (_, i) => (hz((i * top) / (BANDS + 1)) / sampleRate) * SIZE);
  return Array.from({ length: BANDS }, (_, band) => {
    const [low, middle, high] = edges.slice(band, band + 3);
    const found = [];
    for (let bin = Math.ceil(low); bin <= Math.min(high, SIZE / 2); bin++)
      found.push([bin, bin < middle ? (bin - low) / (middle - low) : (high - bin) / (high - middle)]);
    return found.length ? found : [[Math.round(middle), 1]];
  });
}

function heat(share) {
  const place = Math.max(0, Math.min(1, share)) * (HEAT.length - 1);
  const low = Math.min(Math.floor(place), HEAT.length - 2);
  return HEAT[low].map((value, channel) => value + (place - low) * (HEAT[low + 1][channel] - value));
}

function transform(real, imaginary) {
  // fast Fourier transform, in place; the length is a power of 2
  const n = real.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [real[i], real[j]] = [real[j], real[i]];
      [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]];
    }
  }
  for (let span = 2; span <= n; span *= 2)
    for (let k = 0; k < span / 2; k++) {
      const cosine = Math.cos((-2 * Math.PI * k) / span);
      const sine = Math.sin((-2 * Math.PI * k) / span);
      for (let i = k; i < n; i += span) {
        const j = i + span / 2;
        const a = real[j] * cosine - imaginary[j] * sine;
        const b = real[j] * sine + imaginary[j] * cosine;
        real[j] = real[i] - a;
        imaginary[j] = imaginary[i] - b;
        real[i] += a;
        imaginary[i] += b;
      }
    }
}
