"""When sound that is still being made is played, and whether it comes in time. Times in seconds."""

AHEAD_S = 0.15  # of sound that a player waits for before it plays; the page of the server does
NEVER = float("inf")


class Playback:
    """What a listener's player does with the pieces that come: it plays one after the other."""

    def __init__(self) -> None:
        self.waiting_s = 0.0  # of sound that has come before there was enough to begin with
        self.plays_until = NEVER  # when all that has come will have been played; NEVER: it has not begun

    def hear(self, now: float, duration_s: float) -> bool:
        """Take a piece that comes now -> whether it comes late: the player had nothing left to play."""
        if self.plays_until == NEVER:
            self.waiting_s += duration_s
            if self.waiting_s >= AHEAD_S:
                self.plays_until = now + self.waiting_s
            return False
        is_late = now > self.plays_until
        self.plays_until = max(now, self.plays_until) + duration_s
        return is_late
