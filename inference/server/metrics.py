"""Numbers that Prometheus reads at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ..playback import AHEAD_S

FIRST_S = (0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30)
TIMES = (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4, 6, 8, 12, 16, 32)


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, open files and processor time, where there is /proc
        self.requests = Counter("codeclm_requests", "Requests answered", ["path", "status"], registry=registry)
        self.ends = Counter("codeclm_ends", "Speech that ended, by reason", ["reason"], registry=registry)
        self.drawn = Gauge("codeclm_drawn", "Requests that are drawn now", registry=registry)
        self.queue = Gauge("codeclm_queue", "Requests that wait for a place among those", registry=registry)
        self.sockets = Gauge("codeclm_sockets", "Open WebSockets", registry=registry)
        self.speech = Counter("codeclm_speech_seconds", "Seconds of speech made", registry=registry)
        self.underruns = Counter(
            "codeclm_underruns",
            f"Pieces made later than a listener needs who plays once {AHEAD_S:g} s have come",
            registry=registry,
        )
        self.first = Histogram(
            "codeclm_first_audio_seconds", "From the whole request to its first audio", buckets=FIRST_S,
            registry=registry,
        )  # fmt: skip
        self.real_time = Histogram(
            "codeclm_times_real_time", "Seconds of speech a second, of one request from its first audio on",
            buckets=TIMES, registry=registry,
        )  # fmt: skip

    def text(self) -> bytes:
        return generate_latest(self.registry)
