"""Limits of the server, as a plain dataclass; importing it needs nothing heavy."""

import re
from dataclasses import dataclass, fields

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class ServerConfig:
    """Who may ask for how much."""

    max_sessions: int = 8  # requests that are drawn at the same time, which bounds memory
    max_waiting: int = 16  # requests that may wait beyond those; more are refused with 503
    client_sessions: int = 8  # requests of one address at the same time; more are refused with 429
    client_rate: float = 240.0  # requests of one address in a minute; more are refused with 429 (0: any number)
    max_duration: float = 60.0  # seconds of speech that a request may ask for
    max_audio_s: float = 120.0  # seconds of audio that a request may bring
    max_body_mb: float = 32.0  # megabytes of a request
    wait_s: float = 30.0  # seconds that a request waits for its first audio, before it is refused with 503
    stall_s: float = 20.0  # seconds in which a client must send more, or take more of its reply, to stay connected
    drain_s: float = 30.0  # seconds that open requests get after SIGTERM
    token: str = ""  # secret that clients send as "Authorization: Bearer TOKEN" (or set CODECLM_TOKEN)
    proxy: bool = False  # a reverse proxy on this machine is in front: believe its X-Forwarded-For, take any Host

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = {"max_waiting": 0, "client_rate": 0, "drain_s": 0}.get(field.name, 1)
            if not isinstance(value, bool | str) and not least <= value < float("inf"):
                raise ValueError(f"{field.name} is {value}; it must be at least {least}, and finite")
        if self.token and not re.fullmatch(r"[\w.~-]{16,256}", self.token, re.ASCII):
            raise ValueError("token must be 16 to 256 letters, digits, '-', '.', '_' or '~'")

    @property
    def max_body(self) -> int:
        """In bytes."""
        return round(self.max_body_mb * 2**20)
