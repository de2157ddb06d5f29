"""Codecs compared as a language model sees them: `codeclm tokenizers`."""
