// 16-bit samples and WAV files.

export function samplesOf(base64) {
  // s16le -> Float32Array
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return Float32Array.from(new Int16Array(bytes.buffer), (sample) => sample / 32768);
}

export function wav(pieces, sampleRate) {
  // Float32Arrays -> Blob
  const count = pieces.reduce((sum, piece) => sum + piece.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const word = (place, text) => [...text].forEach((letter, i) => view.setUint8(place + i, letter.charCodeAt(0)));
  word(0, "RIFF");
  view.setUint32(4, 36 + 2 * count, true);
  word(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // mono
  view.setUint32(24, sampleRate, true);
  view.setUint32(28, 2 * sampleRate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  word(36, "data");
  view.setUint32(40, 2 * count, true);
  let place = 44;
  for (const piece of pieces)
    for (const sample of piece) {
      view.setInt16(place, Math.max(-32768, Math.min(32767, Math.round(sample * 32768))), true);
      place += 2;
    }
  return new Blob([view], { type: "audio/wav" });
}
