"""The shape of codeclm's own codec as a plain dataclass; importing it needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SpectralConfig:
    """Shape of a "spectral" codec. The embedded one is `SpectralConfig()`."""

    sample_rate: int = 16_000  # samples per second (Hz)
    trunk_hop: int = 320  # samples between trunk frames
    window: int = 640  # samples of the encoder's STFT window
    pitch_window: int = 1024  # samples that the encoder's autocorrelation sees
    stride: int = 2  # trunk frames per codec frame
    filters_per_hop: int = 4  # filters that the decoder makes for one trunk frame
    filter_overlap: int = 4  # filters that act on one sample
    lookahead: int = 1  # trunk frames that the decoder waits for before it speaks
    dispersion: int = 0  # samples by which the pulses' lowest frequencies come before the highest: lower peaks
    knee: int = 0  # percent of full scale above which the output is bent so that it stays below 100; 0: it is not
    encoder_dim: int = 256  # width of the encoder
    dim: int = 384  # width at the codec frame rate and in the decoder
    encoder_layers: int = 4  # blocks of the encoder, at the trunk's rate
    latent_layers: int = 1  # blocks after the stride, before the RVQ
    bottleneck_layers: int = 2  # blocks after the RVQ, before the upsampling
    decoder_layers: int = 6  # blocks of the decoder, at the trunk's rate
    kernel: int = 7  # trunk frames seen by one block
    expansion: int = 3  # how much wider a block is inside
    pitch_dim: int = 128  # width of the network that reads the pitch from the codes
    num_codebooks: int = 8  # codes of a frame
    codebook_size: int = 1024  # values of a code
    codebook_dim: int = 64  # width of what is quantized

    @property
    def synthesis_hop(self) -> int:
        """Samples between the decoder's filters."""
        return self.trunk_hop // self.filters_per_hop

    @property
    def synthesis_window(self) -> int:
        """Samples that one filter acts on."""
        return self.filter_overlap * self.synthesis_hop
