"""Captions of `scenery.Scene` in many wordings, their vocabulary, and what they name."""

from __future__ import annotations

import random
import re

from scenery import Body, Scene

SHAPE_WORDS = {
    "ball": ("ball", "ball", "sphere", "globe"),
    "cube": ("cube", "cube", "box", "block"),
    "star": ("star", "star", "five-pointed star"),
    "ring": ("ring", "ring", "hoop", "torus"),
    "cone": ("pyramid", "pyramid", "cone", "triangle"),
}
COLOR_WORDS = {
    "red": ("red", "red", "crimson"),
    "orange": ("orange",),
    "yellow": ("yellow", "yellow", "golden"),
    "green": ("green",),
    "blue": ("blue",),
    "purple": ("purple", "purple", "violet"),
    "white": ("white",),
}
TEXTURE_WORDS = {
    "plain": ("", "", "", "plain"),
    "striped": ("striped", "striped", "stripy"),
    "woven": ("woven", "woven", "wicker"),
}
FINISH_WORDS = {"matte": ("",), "glowing": ("glowing", "glowing", "luminous", "shining")}
MOTION_WORDS = {
    "still": ("stands still", "stays still", "rests", "does not move"),
    "left": ("moves to the left", "rolls to the left", "slides to the left", "moves left"),
    "right": ("moves to the right", "rolls to the right", "slides to the right", "moves right"),
    "up": ("rises", "moves up", "floats upwards", "rises slowly"),
    "down": ("sinks", "moves down", "floats downwards", "comes down"),
    "bounce": ("bounces", "bounces up and down", "falls and bounces", "hops"),
    "closer": ("comes closer", "moves towards the camera", "grows", "gets bigger"),
}
SHORT_MOTION_WORDS = {
    "still": ("standing still", "not moving"),
    "left": ("moving left", "rolling to the left"),
    "right": ("moving right", "rolling to the right"),
    "up": ("rising", "moving up"),
    "down": ("sinking", "moving down"),
    "bounce": ("bouncing",),
    "closer": ("coming closer", "growing"),
}
GROUND_WORDS = {
    "wood": ("over a wooden floor", "over a striped floor", "on wooden boards", "on a wooden deck"),
    "water": ("over still water", "over a lake", "above the sea", "over rippling water"),
    "sand": ("over the sand", "on a beach", "in the desert", "over sand dunes"),
    "grass": ("over a meadow", "over green grass", "in a green field", "on a lawn"),
}
GROUND_NOUNS = {
    "wood": ("wooden", "floor"),
    "water": ("water", "lake", "sea"),
    "sand": ("sand", "beach", "desert"),
    "grass": ("meadow", "grass", "field", "lawn"),
}
TIME_WORDS = {
    "day": ("by day", "in daylight", "on a bright day", "in the sunshine"),
    "dusk": ("at dusk", "at sunset", "in the evening", "in evening light"),
    "night": ("at night", "by moonlight", "in the dark of night", "on a starry night"),
}
TIME_NOUNS = {
    "day": ("by day", "daylight", "bright day", "sunshine"),
    "dusk": ("dusk", "sunset", "evening"),
    "night": ("night", "moonlight"),
}
WEATHER_WORDS = {
    "clear": ("", "", "under a clear sky"),
    "clouds": ("under drifting clouds", "under a cloudy sky", "with clouds in the sky"),
    "mist": ("in the mist", "in soft fog", "with mist over the hills"),
    "aurora": ("under an aurora", "under northern lights", "with an aurora in the sky"),
}
WEATHER_NOUNS = {
    "clear": ("clear",),
    "clouds": ("cloud",),
    "mist": ("mist", "fog"),
    "aurora": ("aurora", "northern"),
}
CAMERA_WORDS = {
    "fixed": ("", "", "", "The camera does not move."),
    "pan left": ("The camera pans to the left.", "Slow pan to the left."),
    "pan right": ("The camera pans to the right.", "Slow pan to the right."),
}
SECOND_TEMPLATES = (
    "A small {thing} stands {side} behind it.",
    "Behind it, {side}, there is a small {thing}.",
    "A small {thing} rests {side}.",
)
SIDES = ("on the left", "on the right")
TEMPLATES = (
    "{A} {thing} {moves} {where} {when} {weather}.",
    "{A} {thing} {moves} {where} {when} {weather}.",
    "{A} {thing} {moves} {where}, {when} {weather}.",
    "{When}, {a} {thing} {moves} {where} {weather}.",
    "{Where}, {a} {thing} {moves} {when} {weather}.",
    "A video of {a} {thing} that {moves} {where} {when} {weather}.",
    "There is {a} {thing} {where} {when} {weather}. It {moves}.",
    "The {thing} {moves} {where} {when} {weather}.",
)
SHORT_TEMPLATES = (
    "{thing} {moving}",
    "{a} {thing} {moving} {where}",
    "{a} {thing} {moves} {where}",
    "{thing} {moving} {where} {when}",
    "{a} {thing} {moves}, {when}",
)


def _vocabulary() -> tuple[str, ...]:
    """Every word a caption may contain, lower case, sorted."""
    tables = (
        SHAPE_WORDS, COLOR_WORDS, TEXTURE_WORDS, FINISH_WORDS, MOTION_WORDS, SHORT_MOTION_WORDS,
        GROUND_WORDS, TIME_WORDS, WEATHER_WORDS, CAMERA_WORDS,
    )  # fmt: skip
    phrases = [p for table in tables for words in table.values() for p in words]
    templates = [*TEMPLATES, *SHORT_TEMPLATES, *SECOND_TEMPLATES]
    text = " ".join([*phrases, *SIDES, *(re.sub(r"{\w*}", " ", t) for t in templates)])
    return tuple(sorted({*re.findall(r"[a-z]+", text.lower()), "a", "an"}))


VOCABULARY = _vocabulary()


def _join(*words: str) -> str:
    return " ".join(" ".join(words).split())


def article(phrase: str) -> str:
    """`a` or `an`."""
    return "an" if phrase[:1] in "aeiou" else "a"


def thing(body: Body, rng: random.Random) -> str:
    """Name of a solid, such as `glowing striped red ball`."""
    return _join(
        rng.choice(FINISH_WORDS[body.finish]),
        rng.choice(TEXTURE_WORDS[body.texture]),
        rng.choice(COLOR_WORDS[body.color]),
        rng.choice(SHAPE_WORDS[body.shape]),
    )


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def caption(scene: Scene, rng: random.Random) -> str:
    """A description as a user could type it: 85 % whole sentences that name nearly everything,
    15 % short notes of the first object. Now and then ALL CAPITALS, Title Case or lower case."""
    short = rng.random() < 0.15
    name = thing(scene.first, rng)
    where, when = rng.choice(GROUND_WORDS[scene.ground]), rng.choice(TIME_WORDS[scene.time])
    if rng.random() < 0.12 and not short:
        when = ""
    text = rng.choice(SHORT_TEMPLATES if short else TEMPLATES).format(
        thing=name,
        a=article(name),
        A=article(name).capitalize(),
        moves=rng.choice(MOTION_WORDS[scene.first.motion]),
        moving=rng.choice(SHORT_MOTION_WORDS[scene.first.motion]),
        where=where,
        Where=_capitalised(where),
        when=when,
        When=_capitalised(when),
        weather=rng.choice(WEATHER_WORDS[scene.weather]),
    )
    if not short:
        if scene.second is not None and rng.random() < 0.9:
            side = SIDES[scene.second.x > 0]
            text += " " + rng.choice(SECOND_TEMPLATES).format(
                thing=thing(scene.second, rng), side=side
            )
        text += " " + rng.choice(CAMERA_WORDS[scene.camera])
    text = re.sub(r"\s+([.,])", r"\1", _join(text)).replace(",,", ",").lstrip(", ")
    text = text.replace(",.", ".")
    text = text.rstrip(".,") if rng.random() < 0.3 else text
    draw = rng.random()
    if draw < 0.04:
        return text.upper()
    return text.title() if draw < 0.06 else text.lower() if draw < 0.12 else _capitalised(text)


def attributes(scene: Scene) -> dict[str, str]:
    """Labels of a scene, by name of `LABELS`."""
    first, second = scene.first, scene.second
    return {
        "shape": first.shape,
        "color": first.color,
        "texture": first.texture,
        "finish": first.finish,
        "motion": first.motion,
        "ground": scene.ground,
        "time": scene.time,
        "weather": scene.weather,
        "camera": scene.camera,
        "second_shape": second.shape if second else "none",
        "second_color": second.color if second else "none",
    }


NAMED = {"ground": GROUND_NOUNS, "time": TIME_NOUNS, "weather": WEATHER_NOUNS}


def is_named(attribute: str, value: str, text: str) -> bool:
    """Check that a caption names this value. A plain texture, a matte finish and a fixed camera
    count as named by whole sentences and by short notes alike, because nothing is said of them."""
    text = text.lower()
    if attribute in NAMED:
        return any(noun in text for noun in NAMED[attribute][value])
    if attribute == "camera":
        return value == "fixed" or " pan" in f" {text}"
    if attribute.startswith("second_"):
        return value == "none" or "small" in text
    return True
