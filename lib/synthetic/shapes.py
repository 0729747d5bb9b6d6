"""Outlines in canvas pixels: every shape is a closed polygon, float32 [N, 2] in (x, y) order."""

import numpy as np


def polygon(points) -> np.ndarray:
    """A plain polygon from a list of (x, y)."""
    return np.asarray(points, dtype=np.float32)


def ellipse(centre, rx: float, ry: float, angle: float = 0.0, count: int = 36) -> np.ndarray:
    """An ellipse with radii `rx`, `ry` (pixels), turned by `angle` (radians)."""
    t = np.linspace(0, 2 * np.pi, count, endpoint=False)
    flat = np.stack([rx * np.cos(t), ry * np.sin(t)], axis=1)
    return (flat @ rotation(angle).T + centre).astype(np.float32)


def arc(centre, rx: float, ry: float, start: float, stop: float, count: int = 24) -> np.ndarray:
    """An open arc of an ellipse between two angles (radians, clockwise on screen)."""
    t = np.linspace(start, stop, count)
    return np.stack([centre[0] + rx * np.cos(t), centre[1] + ry * np.sin(t)], axis=1).astype(np.float32)


def rounded(points, rounds: int = 2) -> np.ndarray:
    """A closed polygon with its corners cut `rounds` times (Chaikin's corner cutting)."""
    outline = np.asarray(points, dtype=np.float32)
    for _ in range(rounds):
        following = np.roll(outline, -1, axis=0)
        outline = np.stack([0.75 * outline + 0.25 * following, 0.25 * outline + 0.75 * following], axis=1)
        outline = outline.reshape(-1, 2)
    return outline


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """An upright rectangle."""
    return polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def bend(start, joint, stop, count: int = 18) -> np.ndarray:
    """A centre line [count, 2] from `start` to `stop` that turns near `joint` (a quadratic Bezier curve)."""
    start, joint, stop = (np.asarray(p, dtype=np.float64) for p in (start, joint, stop))
    control = joint + 0.75 * (joint - (start + stop) / 2)
    t = np.linspace(0, 1, count)[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * stop


def tube(line: np.ndarray, radius_start: float, radius_stop: float) -> np.ndarray:
    """The outline of a limb along a centre line, with a round cap at both ends; radii in pixels."""
    line = np.asarray(line, dtype=np.float64)
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    radius = np.linspace(radius_start, radius_stop, len(line))[:, None]
    caps = [_cap(line[i], along[i] * sign, r) for i, sign, r in ((-1, 1, radius_stop), (0, -1, radius_start))]
    sides = line - across * radius, (line + across * radius)[::-1]
    return np.concatenate([sides[0], caps[0], sides[1], caps[1]]).astype(np.float32)


def _cap(end, direction, radius: float, count: int = 6) -> np.ndarray:
    across = np.array([-direction[1], direction[0]])
    t = np.linspace(-np.pi / 2, np.pi / 2, count + 2)[1:-1, None]
    return end + radius * (np.cos(t) * direction + np.sin(t) * across)


def rotation(angle: float) -> np.ndarray:
    """The 2x2 matrix that turns by `angle` radians (clockwise on screen)."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def turn_about(pivot, angle: float, shift=(0.0, 0.0)) -> np.ndarray:
    """The affine 2x3 matrix that turns about `pivot` and then moves by `shift`."""
    turned = rotation(angle)
    pivot = np.asarray(pivot, dtype=np.float64)
    return np.hstack([turned, (pivot - turned @ pivot + shift)[:, None]])
