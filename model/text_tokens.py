"""Text tokens that stand for no piece of a text. The ids are Moshi's."""

EPAD = 0  # end of padding, in the frame before a word; sentencepiece's "unknown", which bytes make unneeded
BOS, EOS, PAD = 1, 2, 3
# tags of the layouts "mixed" and "timed", which need these ids for nothing else: audio is to follow, or came before
SAY, WRITE = BOS, EPAD
UNNAMED = -2  # as a target: any token but PAD, where the text is given and only its time is not
