"""Draw pictures like those of a camera, so that a demo has something to show.

This needs Pillow (in the extras `demo` and `test`). Without it, every picture is the same gray.
"""

from __future__ import annotations

import base64
import random
from datetime import datetime

_GRAY = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4"
    "UG1RV19iZ2hnPk1xeXBkeFxlZ2P/wAALCAAIAAgBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAABf/EABQQAQAAAAAAAAAA"
    "AAAAAAAAAAD/2gAIAQEAAD8ACf/Z"
)
_SKIES = {  # the colours of (top, horizon, ground) by the light
    "day": ((88, 150, 208), (214, 231, 241), (112, 122, 104)),
    "dusk": ((52, 48, 96), (236, 150, 104), (70, 62, 64)),
    "night": ((8, 12, 26), (34, 44, 66), (26, 30, 34)),
}


def draw(
    camera_id: int, name: str, when: datetime, size: tuple[int, int], stamped: bool = True
) -> bytes:
    """Draw a JPEG of `size` pixels: each camera sees its own place, in the light of the hour."""
    try:
        from PIL import Image, ImageDraw, ImageFont, ImageOps
    except ImportError:
        return _GRAY
    rng = random.Random(camera_id)  # noqa: S311 - one camera, one place
    width, height = size
    paint = [rng.randint(60, 230) for _ in range(3)]
    light = _light(when.hour)
    top, horizon, ground = _SKIES[light]
    line = int(height * rng.uniform(0.42, 0.56))
    gradient = Image.linear_gradient("L")
    image = Image.new("RGB", size)
    image.paste(ImageOps.colorize(gradient.resize((width, line)), top, horizon), (0, 0))
    far = tuple(int(c * 0.75) for c in ground)
    image.paste(ImageOps.colorize(gradient.resize((width, height - line)), far, ground), (0, line))
    pen = ImageDraw.Draw(image, "RGBA")
    lit = (255, 214, 130, 255)
    dark = {"day": 0.78, "dusk": 0.42, "night": 0.26}[light]

    x = -rng.randint(0, width // 8)
    while x < width:  # a row of buildings, with windows
        wide, high = rng.randint(width // 9, width // 4), rng.randint(height // 8, height // 3)
        shade = rng.randint(110, 190)
        wall = tuple(int((shade + tint) * dark) for tint in (8, 0, -6))
        pen.rectangle((x, line - high, x + wide, line + 2), fill=wall)
        step = max(6, height // 22)
        for wx in range(x + step, x + wide - step, step * 2):
            for wy in range(line - high + step, line - step, step * 2):
                burning = rng.random() < 0.4 and light != "day"
                glass = lit if burning else (20, 30, 44, 150)
                pen.rectangle((wx, wy, wx + step * 0.8, wy + step), fill=glass)
        x += wide + rng.randint(0, width // 12)

    vanish = width * rng.uniform(0.3, 0.7)
    pen.polygon(
        [
            (vanish - width * 0.03, line),
            (vanish + width * 0.03, line),
            (width * 0.95, height),
            (width * 0.05, height),
        ],
        fill=(0, 0, 0, 70),
    )
    for i in range(6):  # the dashes of the road, larger towards the camera
        near, end = (i / 6) ** 2, ((i + 0.45) / 6) ** 2
        y0, y1 = line + near * (height - line), line + end * (height - line)
        mid0, mid1 = vanish + (width / 2 - vanish) * near, vanish + (width / 2 - vanish) * end
        w0, w1 = 1 + near * width * 0.012, 1 + end * width * 0.012
        pen.polygon(
            [(mid0 - w0, y0), (mid0 + w0, y0), (mid1 + w1, y1), (mid1 - w1, y1)],
            fill=(240, 240, 225, 130),
        )
    if light != "day":  # a street lamp and its light
        lamp = int(width * rng.choice((0.16, 0.84)))
        for step in range(28):
            reach = (28 - step) * height / 90
            pen.ellipse(
                (lamp - reach, line - height / 5 - reach, lamp + reach, line - height / 5 + reach),
                fill=(255, 220, 150, 5),
            )
        pen.line((lamp, line - height / 5, lamp, line + height / 8), fill=(20, 20, 22), width=3)
    # A car moves along the road, further each second.
    along = (when.second + camera_id * 7) % 60 / 60
    car_y = line + (height - line) * (0.15 + 0.5 * along)
    car = width * (0.05 + 0.1 * along)
    car_x = vanish + (width * 0.62 - vanish) * along
    color = tuple(int(value * max(dark, 0.45)) for value in paint)
    pen.rounded_rectangle((car_x, car_y, car_x + car, car_y + car * 0.35), car * 0.08, fill=color)
    pen.rounded_rectangle(
        (car_x + car * 0.18, car_y - car * 0.2, car_x + car * 0.8, car_y + car * 0.1),
        car * 0.08,
        fill=color,
    )
    pen.rectangle(
        (car_x + car * 0.26, car_y - car * 0.13, car_x + car * 0.72, car_y + car * 0.03),
        fill=(25, 35, 50),
    )
    for wheel in (0.22, 0.78):
        cx, cy, r = car_x + car * wheel, car_y + car * 0.35, car * 0.09
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=(15, 15, 18))

    noise = Image.effect_noise(size, 38).convert("RGB")  # the grain of a cheap sensor
    image = Image.blend(image, noise, 0.05 if light == "day" else 0.09)
    shadow = Image.radial_gradient("L").resize(size).point([int(v * 0.32) for v in range(256)])
    image.paste((0, 0, 0), (0, 0), shadow)

    pen = ImageDraw.Draw(image, "RGBA")
    text = max(11, height // 28)
    font = ImageFont.load_default(text)
    bar = int(text * 1.9)
    pen.rectangle((0, 0, width, bar), fill=(0, 0, 0, 120))
    pen.text((text * 0.6, bar / 2), name, font=font, fill="white", anchor="lm")
    if stamped:
        stamp = when.strftime("%Y-%m-%d %H:%M:%S UTC")
        pen.text((width - text * 0.6, bar / 2), stamp, font=font, fill="white", anchor="rm")
    return _encode(image)


def _light(hour: int) -> str:
    if 8 <= hour < 17:
        return "day"
    return "dusk" if hour in (6, 7, 17, 18, 19) else "night"


def _encode(image: object) -> bytes:
    import io

    from PIL import Image

    assert isinstance(image, Image.Image)  # noqa: S101 - for the type checker
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
