"""The block formats of GGUF: quantising, reading back, and drawing random blocks. numpy only.

Quantisers are round-to-nearest without search or importance weights: simple, quick and exactly reproducible (float32
additions, products, quotients and `rint` only). Layouts are little-endian; `d` and `m` are IEEE half.
Every function works on whole arrays: `values` is float32 [blocks, block_size], encoded blocks are uint8 [blocks, bytes].
"""
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Format:
    name: str
    type_id: int       # ggml's number
    size: int          # values in a block
    bytes: int         # bytes of a block


FORMATS = {f.name: f for f in (
    Format("f32", 0, 1, 4), Format("f16", 1, 1, 2), Format("bf16", 30, 1, 2), Format("q4_0", 2, 32, 18),
    Format("q4_1", 3, 32, 20), Format("q8_0", 8, 32, 34), Format("q4_k", 12, 256, 144), Format("q5_k", 13, 256, 176),
    Format("q6_k", 14, 256, 210))}


def f32_to_bf16(values):
    """Nearest, ties to even; uint16 bit patterns. Finite input only."""
    bits = values.astype("<f4", copy=False).view("<u4")
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype("<u2")


def bf16_to_f32(bits):
    return (bits.astype("<u4") << 16).view("<f4")


def half(column):
    """float32 [n] -> (bytes [n, 2], the float32 that a reader will see)."""
    rounded = column.astype("<f2")
    return rounded.view(np.uint8).reshape(-1, 2), rounded.astype(np.float32)


def unhalf(two_bytes):
    return np.ascontiguousarray(two_bytes).view("<f2").astype(np.float32).reshape(-1)


def ratio(numerator, denominator):
    """numerator / denominator, 0 where the denominator is 0 (a block of equal or zero values)."""
    safe = np.where(denominator == 0, np.float32(1), denominator)
    return np.where(denominator == 0, np.float32(0), numerator / safe).astype(np.float32)


def pack_nibbles(low, high):
    return (low | (high << 4)).astype(np.uint8)


# --- 32-value formats ----------------------------------------------------------------------------------------------

def encode_q8_0(values):
    d_bytes, d = half(np.abs(values).max(axis=1) / np.float32(127))
    q = np.clip(np.rint(ratio(values, d[:, None])), -127, 127).astype(np.int8)
    return np.concatenate([d_bytes, q.view(np.uint8)], axis=1)


def decode_q8_0(blocks):
    return unhalf(blocks[:, :2])[:, None] * blocks[:, 2:].view(np.int8).astype(np.float32)


def encode_q4_0(values):
    """The value of largest magnitude sits exactly on -8, so its sign decides the sign of d."""
    extreme = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)[:, 0]
    d_bytes, d = half(extreme / np.float32(-8))
    q = np.clip(np.rint(ratio(values, d[:, None])) + 8, 0, 15).astype(np.uint8)
    return np.concatenate([d_bytes, pack_nibbles(q[:, :16], q[:, 16:])], axis=1)


def decode_q4_0(blocks):
    q = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float32)
    return unhalf(blocks[:, :2])[:, None] * (q - 8)


def encode_q4_1(values):
    low = values.min(axis=1)
    d_bytes, d = half((values.max(axis=1) - low) / np.float32(15))
    m_bytes, m = half(low)
    q = np.clip(np.rint(ratio(values - m[:, None], d[:, None])), 0, 15).astype(np.uint8)
    return np.concatenate([d_bytes, m_bytes, pack_nibbles(q[:, :16], q[:, 16:])], axis=1)


def decode_q4_1(blocks):
    q = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1).astype(np.float32)
    return unhalf(blocks[:, :2])[:, None] * q + unhalf(blocks[:, 2:4])[:, None]


# --- 256-value formats ---------------------------------------------------------------------------------------------

def pack_scales(scales, mins):
    """Eight 6-bit scales and eight 6-bit minimums (uint8 [n, 8] each) into the 12 bytes of Q4_K and Q5_K."""
    first = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    second = mins[:, :4] | ((mins[:, 4:] >> 4) << 6)
    third = (scales[:, 4:] & 15) | ((mins[:, 4:] & 15) << 4)
    return np.concatenate([first, second, third], axis=1).astype(np.uint8)


def unpack_scales(packed):
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    mins = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scales, mins


def affine_256(values, top):
    """What Q4_K (top = 15) and Q5_K (31) share: x = d*scale*q - dmin*min in eight sub-blocks of 32.

    Returns the 16 bytes of scales in front of the quants and the quants, uint8 [n, 8, 32]."""
    sub = values.reshape(-1, 8, 32)
    low = np.minimum(sub.min(axis=2), np.float32(0))                # min is stored as a non-negative number
    step = (sub.max(axis=2) - low) / np.float32(top)
    step = np.maximum(step, np.float32(0))
    d_bytes, d = half(step.max(axis=1) / np.float32(63))
    m_bytes, dmin = half((-low).max(axis=1) / np.float32(63))
    scales = np.clip(np.rint(ratio(step, d[:, None])), 0, 63).astype(np.uint8)
    mins = np.clip(np.rint(ratio(-low, dmin[:, None])), 0, 63).astype(np.uint8)
    actual_step = d[:, None] * scales.astype(np.float32)
    actual_low = dmin[:, None] * mins.astype(np.float32)
    q = np.clip(np.rint(ratio(sub + actual_low[:, :, None], actual_step[:, :, None])), 0, top).astype(np.uint8)
    return np.concatenate([d_bytes, m_bytes, pack_scales(scales, mins)], axis=1), q


def undo_affine_256(blocks, q):
    scales, mins = unpack_scales(blocks[:, 4:16])
    step = unhalf(blocks[:, :2])[:, None] * scales.astype(np.float32)
    low = unhalf(blocks[:, 2:4])[:, None] * mins.astype(np.float32)
    return (step[:, :, None] * q.astype(np.float32) - low[:, :, None]).reshape(-1, 256)


def encode_q4_k(values):
    head, q = affine_256(values, 15)
    return np.concatenate([head, pack_nibbles(q[:, 0::2], q[:, 1::2]).reshape(-1, 128)], axis=1)


def decode_q4_k(blocks):
    groups = blocks[:, 16:].reshape(-1, 4, 32)
    q = np.stack([groups & 15, groups >> 4], axis=2).reshape(-1, 8, 32)
    return undo_affine_256(blocks, q)


def encode_q5_k(values):
    head, q = affine_256(values, 31)
    fifth_bits = np.zeros((len(q), 32), dtype=np.uint8)
    for j in range(8):
        fifth_bits |= (q[:, j] >> 4) << j
    nibbles = pack_nibbles(q[:, 0::2] & 15, q[:, 1::2] & 15).reshape(-1, 128)
    return np.concatenate([head, fifth_bits, nibbles], axis=1)


def decode_q5_k(blocks):
    groups = blocks[:, 48:].reshape(-1, 4, 32)
    q = np.stack([groups & 15, groups >> 4], axis=2).reshape(-1, 8, 32)
    for j in range(8):
        q[:, j] |= ((blocks[:, 16:48] >> j) & 1) << 4
    return undo_affine_256(blocks, q)


def encode_q6_k(values):
    """x = d * scale * (q - 32) in sixteen sub-blocks of 16; the scale's sign puts the extreme value on q = 0."""
    sub = values.reshape(-1, 16, 16)
    extreme = np.take_along_axis(sub, np.abs(sub).argmax(axis=2)[:, :, None], axis=2)[:, :, 0]
    step = extreme / np.float32(-32)
    d_bytes, d = half(np.abs(step).max(axis=1) / np.float32(127))
    scales = np.clip(np.rint(ratio(step, d[:, None])), -127, 127).astype(np.int8)
    actual = d[:, None] * scales.astype(np.float32)
    q = (np.clip(np.rint(ratio(sub, actual[:, :, None])), -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = np.concatenate([pack_nibbles(q[:, :, 0] & 15, q[:, :, 2] & 15), pack_nibbles(q[:, :, 1] & 15, q[:, :, 3] & 15)],
                         axis=2).reshape(-1, 128)
    high = ((q[:, :, 0] >> 4) | ((q[:, :, 1] >> 4) << 2) | ((q[:, :, 2] >> 4) << 4) | ((q[:, :, 3] >> 4) << 6))
    return np.concatenate([low, high.reshape(-1, 64).astype(np.uint8), scales.view(np.uint8), d_bytes], axis=1)


def decode_q6_k(blocks):
    low = blocks[:, :128].reshape(-1, 2, 2, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 32)
    nibbles = (low[:, :, 0] & 15, low[:, :, 1] & 15, low[:, :, 0] >> 4, low[:, :, 1] >> 4)
    q = np.stack([n | (((high >> (2 * k)) & 3) << 4) for k, n in enumerate(nibbles)], axis=2).reshape(-1, 16, 16)
    scales = unhalf(blocks[:, 208:210])[:, None] * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return (scales[:, :, None] * (q.astype(np.float32) - 32)).reshape(-1, 256)


# --- the table -----------------------------------------------------------------------------------------------------

ENCODERS = {"q8_0": encode_q8_0, "q4_0": encode_q4_0, "q4_1": encode_q4_1, "q4_k": encode_q4_k, "q5_k": encode_q5_k,
            "q6_k": encode_q6_k}
DECODERS = {"q8_0": decode_q8_0, "q4_0": decode_q4_0, "q4_1": decode_q4_1, "q4_k": decode_q4_k, "q5_k": decode_q5_k,
            "q6_k": decode_q6_k}


def encode(values, name):
    """Flat float32 values, a whole number of blocks, to bytes of the format."""
    if name == "f32":
        return values.astype("<f4", copy=False).tobytes()
    if name == "f16":
        return values.astype("<f2").tobytes()
    if name == "bf16":
        return f32_to_bf16(values).tobytes()
    return ENCODERS[name](values.reshape(-1, FORMATS[name].size)).tobytes()


def decode(data, name):
    """Bytes of the format to flat float32 values."""
    raw = np.frombuffer(data, dtype=np.uint8)
    if name in ("f32", "f16"):
        return raw.view("<f4" if name == "f32" else "<f2").astype(np.float32)
    if name == "bf16":
        return bf16_to_f32(raw.view("<u2"))
    return DECODERS[name](raw.reshape(-1, FORMATS[name].bytes)).reshape(-1)


def draw(random_bytes, count, name, deviation):
    """`count` blocks of zero-mean random weights of about the given standard deviation, made without any float model.

    `random_bytes(n)` returns n uint8. Quants are uniform; the scale varies by +-20 % from block to block and has a
    random sign, so that a reader which mixes up blocks or nibbles gives another result."""
    form = FORMATS[name]
    blocks = random_bytes(count * form.bytes).reshape(count, form.bytes).copy()

    def scale(size, columns=1):
        raw = random_bytes(2 * count * columns).reshape(2, count, columns)
        magnitude = np.float32(size) * (np.float32(0.8) + raw[0].astype(np.float32) * np.float32(0.4 / 255))
        return np.where(raw[1] & 1, magnitude, -magnitude).astype(np.float32)

    if name == "q8_0":                       # uniform int8: deviation 73.9
        blocks[:, :2] = half(scale(deviation / 73.9)[:, 0])[0]
    elif name == "q4_0":                     # uniform nibble: deviation 4.61
        blocks[:, :2] = half(scale(deviation / 4.61)[:, 0])[0]
    elif name == "q4_1":                     # m takes the mean out: 7.5 steps
        d_bytes, d = half(scale(deviation / 4.61)[:, 0])
        blocks[:, :2], blocks[:, 2:4] = d_bytes, half(d * np.float32(-7.5))[0]
    elif name in ("q4_k", "q5_k"):           # scale and min of a sub-block alike, about 48 of 63
        top, spread = (15, 4.61) if name == "q4_k" else (31, 9.23)
        d_bytes, d = half(scale(deviation / spread / 48)[:, 0])
        six_bits = 40 + (random_bytes(count * 8).reshape(count, 8) & 15)
        blocks[:, :2], blocks[:, 2:4] = d_bytes, half(d * np.float32(top / 2))[0]
        blocks[:, 4:16] = pack_scales(six_bits, six_bits)
    elif name == "q6_k":                     # uniform six bits: deviation 18.5, scales near +-64
        scales = np.rint(scale(64, 16)).astype(np.int8)
        blocks[:, 192:208] = scales.view(np.uint8)
        blocks[:, 208:] = half(scale(deviation / 18.5 / 64)[:, 0])[0]
    else:
        raise ValueError(f"cannot draw blocks of {name}")
    return blocks.tobytes()
