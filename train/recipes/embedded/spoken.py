"""Sentences that dictionaries lack: numbers, dates, times, prices, telephone numbers, names and spelled words."""

import random

FIRST = """
Anna Peter Maria James Olga Thomas Fatima David Ingrid Carlos Mei Ahmed Julia Samuel Priya Kenji Elena Marcus Nadia
Oliver Sofia Patrick Leila Hugo Amara Victor Hannah Dmitri Rosa Ibrahim Clara Tobias Yuki Walter Zoe Gregory
"""
LAST = """
Miller Schmidt Johnson Petrova Garcia Tanaka Okafor Murphy Rossi Andersen Patel Kowalski Dubois Nguyen Haddad Silva
Brown Larsen Weber Novak Costa Ivanov Fischer Thompson Yilmaz Moreau Clarke Jensen Kumar Bennett Marino Foster
"""
TOWNS = """
London Boston Vienna Madrid Toronto Dublin Cairo Oslo Lisbon Chicago Prague Sydney Nairobi Kyoto Denver Glasgow Naples
Leeds Seattle Hamburg Bristol Austin Geneva Warsaw Montreal Phoenix Cardiff Helsinki Memphis Bergen
"""
MONTHS = "January February March April May June July August September October November December"
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
WORDS = """
window garden river market letter silver yellow candle basket doctor number planet winter summer bridge castle dinner
coffee pencil rabbit tunnel engine forest island jacket kitchen lantern morning needle orange picture quarter
"""
UNITS = "miles kilometres pounds kilograms metres degrees minutes hours litres pages tickets boxes"


def spoken_sentences(count: int, seed: int) -> list[str]:
    """`count` sentences or fewer, as repeated ones are left out."""
    rng = random.Random(seed)
    return list(dict.fromkeys(rng.choice(KINDS)(rng) for _ in range(count)))


def _one(words: str, rng: random.Random) -> str:
    return rng.choice(words.split())


def _number(rng: random.Random) -> str:
    return f"{rng.randrange(10 ** rng.randint(1, 6)):,}"


def _date(rng: random.Random) -> str:
    day = f"{_one(DAYS, rng)}, {_one(MONTHS, rng)} {rng.randint(1, 28)}"
    return f"{day}, {rng.randint(1800, 2030)}" if rng.random() < 0.5 else day


def _time(rng: random.Random) -> str:
    return f"{rng.randint(1, 12)}:{rng.randrange(0, 60, 5):02d} {rng.choice(('am', 'pm'))}"


def _name(rng: random.Random) -> str:
    return f"{_one(FIRST, rng)} {_one(LAST, rng)}"


def _letters(rng: random.Random) -> str:
    return ", ".join((_one(WORDS, rng) if rng.random() < 0.6 else _one(LAST, rng)).upper())


def _digits(rng: random.Random) -> str:
    return ", ".join(str(rng.randrange(10)) for _ in range(rng.randint(3, 8)))


KINDS = (
    lambda rng: f"{_name(rng)} was born in {_one(TOWNS, rng)} on {_date(rng)}.",
    lambda rng: f"The train from {_one(TOWNS, rng)} to {_one(TOWNS, rng)} leaves at {_time(rng)}.",
    lambda rng: f"It costs ${rng.randint(1, 999)}.{rng.randrange(100):02d}, and there are {_number(rng)} left.",
    lambda rng: f"Please call {_name(rng)} at {_digits(rng)}.",
    lambda rng: f"That is spelled {_letters(rng)}.",
    lambda rng: f"{_letters(rng)}.",
    lambda rng: f"{_digits(rng)}.",
    lambda rng: f"They counted {_number(rng)} {_one(UNITS, rng)}, not {_number(rng)}.",
    lambda rng: f"We met on {_date(rng)}, at {_time(rng)}.",
    lambda rng: f"Is {_name(rng)} coming on {_one(DAYS, rng)}, or is it {_name(rng)}?",
    lambda rng: f"About {rng.randint(2, 99)} percent of the {_number(rng)} people in {_one(TOWNS, rng)} said no.",
    lambda rng: f"Turn to page {rng.randint(2, 900)}, chapter {rng.randint(1, 40)}, line {rng.randint(1, 40)}.",
    lambda rng: f"{_one(DAYS, rng)} {_one(DAYS, rng)}, {_one(MONTHS, rng)}, {_one(TOWNS, rng)}, {_number(rng)}.",
    lambda rng: (
        f"{_one(FIRST, rng)}, {_one(FIRST, rng)} and {_name(rng)} live at {rng.randint(1, 300)} "
        f"{_one(LAST, rng)} Street, {_one(TOWNS, rng)}."
    ),
    lambda rng: f"The number {_number(rng)} is more than {_number(rng)}.",
)
