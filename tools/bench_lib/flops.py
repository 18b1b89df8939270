"""What a training step computes, from a model's config.json, and what that is of a machine's peak.

FLOP a token, without recomputing, r on every linear of the blocks, every token in the loss:

    frozen weights   4 (P + V h)   forward and dX; P weights in the blocks' linears, V h in the head
    adapters         6 r S         forward, dX and dA, dB; S the sum of inputs and outputs of the linears
    attention        14 L H d (n + 1) / 2   two products forward, five backward, over the keys a token sees in the mean

What is computed again in the backward pass does not count: it is no use to the user. Nor do norms and activations."""


def shape_of(config):
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    dim = config.get("head_dim") or hidden // heads
    queries, keys, inner = heads * dim, config.get("num_key_value_heads", heads) * dim, config["intermediate_size"]
    linears = [
        (hidden, queries),
        (hidden, keys),
        (hidden, keys),
        (queries, hidden),
        (hidden, inner),
        (hidden, inner),
        (inner, hidden),
    ]
    return {
        "layers": config["num_hidden_layers"],
        "weights": sum(a * b for a, b in linears),  # of a block
        "sides": sum(a + b for a, b in linears),
        "queries": queries,
        "head": config["vocab_size"] * hidden,
    }


def attention_per_token(config, sequence):
    shape = shape_of(config)
    return 14 * shape["layers"] * shape["queries"] * (sequence + 1) / 2


def per_token(config, sequence, rank=16):
    shape = shape_of(config)
    blocks = shape["layers"] * (4 * shape["weights"] + 6 * rank * shape["sides"])
    return blocks + 4 * shape["head"] + attention_per_token(config, sequence)


def attention_rate(config, short, long):
    """FLOP/s of attention alone, from two (sequence, tokens/s): what a token costs more at the longer one is attention's."""
    flops = attention_per_token(config, long[0]) - attention_per_token(config, short[0])
    seconds = 1 / long[1] - 1 / short[1]
    return flops / seconds if seconds > 0 else float("inf")


def line_through(points):
    """(slope, offset, farthest): least squares through (x, y), and the farthest point from it as a share of its y."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    offset = mean_y - slope * mean_x
    return slope, offset, max(abs(slope * x + offset - y) / y for x, y in points)
