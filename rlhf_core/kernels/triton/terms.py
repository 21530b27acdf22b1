# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator"
"""The formulas the kernels share, each on one number or a block of them; float32 throughout.

Triton's own exp and log are the GPU's approximations, and libdevice's are not in the interpreter; so exp, expm1 and
log1p are written out here, right to a rounding or two on every device. NaN passes through all of them.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN2_HIGH = tl.constexpr(0.693359375)  # few bits, so that a multiple of it is exact; the rest of ln 2 is LN2_LOW
LN2_LOW = tl.constexpr(-2.12194440054690583e-4)
ROUND = tl.constexpr(12582912.0)  # 1.5·2²³: adding it leaves a number rounded to an integer in the low bits
LOG_RATIO_LIMIT = tl.constexpr(20.0)
ORPO_HIGHEST = tl.constexpr(-1.1920928955078125e-07)  # −eps of float32


@triton.jit
def clamp(x, low, high):
    """As torch.clamp: NaN stays."""
    return at_most(tl.where(x < low, low, x), high)


@triton.jit
def at_most(x, high):
    """The smaller one; NaN stays."""
    return tl.where(x > high, high, x)


@triton.jit
def exp_of(x):
    """e^x and e^x − 1 = 2^n·e^r and 2^n·(e^r − 1) + 2^n − 1 with x = n·ln 2 + r."""
    x = clamp(x, -87.0, 89.0)  # beyond, they are 0 (−1) and infinity in float32
    shifted = x * LOG2_E + ROUND
    n = shifted - ROUND
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    tail = 1 / 120 + r * (1 / 720 + r * (1 / 5040))
    below = r + r * r * (0.5 + r * (1 / 6 + r * (1 / 24 + r * tail)))  # e^r − 1, |r| ≤ ½·ln 2
    half = ((shifted.to(tl.int32, bitcast=True) << 23) + (126 << 23)).to(tl.float32, bitcast=True)  # 2^(n−1)
    return 2 * (below * half + half), 2 * (below * half + (half - 0.5))


@triton.jit
def log1p_of(x):
    """log(1 + x) for 0 ≤ x ≤ 1, as 2·artanh(x / (2 + x))."""
    s = x / (2 + x)
    z = s * s
    tail = 1 / 9 + z * (1 / 11 + z * (1 / 13))
    return 2 * s * (1 + z * (1 / 3 + z * (1 / 5 + z * (1 / 7 + z * tail))))


@triton.jit
def negative_log_sigmoid(x):
    """−log σ(x), and σ(−x), which is minus its slope."""
    small, _ = exp_of(-tl.abs(x))
    return tl.where(x < 0, -x, 0.0) + log1p_of(small), tl.where(x < 0, 1.0, small) / (1 + small)


@triton.jit
def kl_term(d, ESTIMATOR: tl.constexpr):
    """The estimate of KL(π‖π_ref) from d = log π − log π_ref, and its slope (``kl.py``)."""
    if ESTIMATOR == "k1":
        return d, tl.full(d.shape, 1.0, tl.float32)
    elif ESTIMATOR == "k2":
        return 0.5 * d * d, d
    else:
        _, below = exp_of(-d)
        return below + d, -below


@triton.jit
def objective_term(log_ratio, advantage, logprob, low, high, dual_clip, CISPO: tl.constexpr):
    """Of a log-ratio not yet clamped: objective, its slope by the log-prob, ratio, approx_kl, whether it is clipped.

    At a tie of min or max the unclipped side has the slope. Formula: ``policy_loss.py``.
    """
    clamped = clamp(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio, below = exp_of(clamped)
    bounded = clamp(ratio, low, high)
    if CISPO:
        slope = bounded * advantage
        objective = slope * logprob
        clipped = bounded != ratio
    else:
        free, bound = ratio * advantage, bounded * advantage
        clipped = bound < free
        objective = tl.where(clipped, bound, free)
        slope = tl.where(clipped | (clamped != log_ratio), 0.0, free)
        if dual_clip is not None:
            floor = dual_clip * advantage
            floored = (advantage < 0) & (objective < floor)
            objective = tl.where(floored, floor, objective)
            slope = tl.where(floored, 0.0, slope)
    return objective, slope, ratio, below - clamped, clipped


@triton.jit
def value_term(value, old, target, value_clip):
    """½·max((V − R)², (clamp(V, V_old ± value_clip) − R)²), its slope, whether it is clipped."""
    error = value - target
    free = error * error
    if value_clip is None:
        return 0.5 * free, error, error < error
    else:
        other = clamp(value, old - value_clip, old + value_clip) - target
        bound = other * other
        clipped = bound > free
        return 0.5 * tl.where(clipped, bound, free), tl.where(clipped, 0.0, error), clipped


@triton.jit
def ranking_term(better, worse, margin, center_coef):
    """−log σ(better − worse − margin) + center_coef·(better + worse)², and its slope by either score."""
    total = better + worse
    term, wrong = negative_log_sigmoid(better - worse - margin)
    pull = 2 * center_coef * total
    return term + center_coef * total * total, pull - wrong, pull + wrong


@triton.jit
def log_odds(logprob):
    """log(p/(1−p)) of log p, which is at most −eps, and its slope."""
    below = at_most(logprob, ORPO_HIGHEST)
    _, minus_complement = exp_of(below)
    slope = tl.where(logprob > ORPO_HIGHEST, 0.0, -1 / minus_complement)
    return below - tl.log(-minus_complement), slope


@triton.jit
def preference_term(c, r, beta, smoothing, margin, z_c, z_r, KIND: tl.constexpr):
    """The loss of log-ratios, and its slope by either (``preference_loss.py``)."""
    h = beta * (c - r) - margin
    if KIND == "hinge":
        slope = tl.where(h < 1, beta, 0.0)
        return tl.where(h > 1, 0.0, 1 - h), -slope, slope
    elif KIND == "ipo":
        distance = c - r - 1 / (2 * beta)
        return distance * distance, 2 * distance, -2 * distance
    elif KIND == "kto":
        _, better = negative_log_sigmoid(beta * (c - z_r))
        _, worse = negative_log_sigmoid(beta * (z_c - r))
        half = 0.5 * beta
        return 0.5 * (better + worse), -half * (better * (1 - better)), half * (worse * (1 - worse))
    elif KIND == "orpo":
        odds_c, slope_c = log_odds(c)
        odds_r, slope_r = log_odds(r)
        gap, wrong = negative_log_sigmoid(odds_c - odds_r)
        return beta * gap - c, -1 - beta * wrong * slope_c, beta * wrong * slope_r
    else:  # dpo and simpo
        right, wrong = negative_log_sigmoid(h)
        slope = beta * (smoothing - wrong)
        return (1 - smoothing) * right + smoothing * (right + h), slope, -slope
