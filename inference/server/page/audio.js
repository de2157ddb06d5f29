// The two ends of the sound, in the browser's audio thread: "player" plays samples that are still being made, without a
// gap between the pieces; "recorder" hands on what it hears.

const AHEAD_S = 0.15; // of sound before it begins, or goes on after it ran dry
const TELL_S = 0.04; // between two messages of where it is

class Player extends AudioWorkletProcessor {
  constructor() {
    super();
    this.pieces = []; // Float32Array; all that has come
    this.length = this.position = 0; // in samples
    this.piece = this.offset = 0; // where `position` is
    this.plays = this.isWhole = this.isDry = false;
    this.untold = 0;
    this.port.onmessage = ({ data }) => {
      if (data.samples) {
        this.pieces.push(data.samples);
        this.length += data.samples.length;
      }
      if (data.isWhole) this.isWhole = true;
      if (data.seek !== undefined) this.seek(data.seek);
      if (data.plays !== undefined) {
        this.plays = data.plays;
        this.isDry = true; // wait for a little sound
      }
    };
  }

  seek(position) {
    this.position = Math.max(0, Math.min(this.length, position));
    this.piece = 0;
    this.offset = this.position;
    while (this.piece < this.pieces.length && this.offset >= this.pieces[this.piece].length)
      this.offset -= this.pieces[this.piece++].length;
  }

  process(_, [[output]]) {
    const enough = this.isWhole ? 1 : AHEAD_S * sampleRate;
    if (this.plays && this.isDry && this.length - this.position >= enough) this.isDry = false;
    if (this.plays && !this.isDry) this.fill(output);
    this.untold += output.length;
    if (this.untold >= TELL_S * sampleRate) this.tell();
    return true;
  }

  fill(output) {
    let done = 0;
    while (done < output.length && this.piece < this.pieces.length) {
      const piece = this.pieces[this.piece];
      const part = piece.subarray(this.offset, this.offset + output.length - done);
      output.set(part, done);
      done += part.length;
      this.offset += part.length;
      this.position += part.length;
      if (this.offset === piece.length) {
        this.piece++;
        this.offset = 0;
      }
    }
    if (done === output.length) return;
    this.plays = !this.isWhole;
    this.isDry = true;
    this.tell(!this.isWhole);
  }

  tell(ranDry = false) {
    this.untold = 0;
    this.port.postMessage({ position: this.position, plays: this.plays, ranDry });
  }
}

class Recorder extends AudioWorkletProcessor {
  process([[input]]) {
    if (input) this.port.postMessage(input.slice());
    return true;
  }
}

registerProcessor("player", Player);
registerProcessor("recorder", Recorder);
