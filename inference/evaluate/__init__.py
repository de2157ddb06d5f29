"""How codeclm measures speech: measures of audio, transcripts, and the reports built on them."""
