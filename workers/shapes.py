"""Names and shapes of the parameters of well-known models, generated from their architectures; no weights, no torch."""

from collections.abc import Callable

from ps.errors import ConfigError

Shapes = dict[str, tuple[int, ...]]
"""Parameters in state-dict order; tied ones once."""


def resnet50(classes: int = 1000) -> Shapes:
    """He et al., "Deep residual learning", CVPR 2016, table 1: stages of 3, 4, 6, 3 bottlenecks. 25.6 M parameters."""
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7)} | _scale_and_shift("bn1", 64)
    inputs = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(blocks):
            shapes |= _bottleneck(f"layer{stage}.{block}", inputs, width, has_shortcut=block == 0)
            inputs = 4 * width
    return shapes | _linear("fc", inputs, classes)


def _bottleneck(name: str, inputs: int, width: int, *, has_shortcut: bool) -> Shapes:
    shapes: Shapes = {}
    for i, (into, out, size) in enumerate([(inputs, width, 1), (width, width, 3), (width, 4 * width, 1)], start=1):
        shapes[f"{name}.conv{i}.weight"] = (out, into, size, size)
        shapes |= _scale_and_shift(f"{name}.bn{i}", out)
    if has_shortcut:
        shapes[f"{name}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
        shapes |= _scale_and_shift(f"{name}.downsample.1", 4 * width)
    return shapes


def gpt2(layers: int = 12, width: int = 768, vocabulary: int = 50257, context: int = 1024) -> Shapes:
    """Radford et al. 2019, the small model; weights of the projections as (inputs, outputs), the head tied. 124 M parameters."""
    shapes: Shapes = {"wte.weight": (vocabulary, width), "wpe.weight": (context, width)}
    for i in range(layers):
        shapes |= _scale_and_shift(f"h.{i}.ln_1", width)
        shapes |= {f"h.{i}.attn.c_attn.weight": (width, 3 * width), f"h.{i}.attn.c_attn.bias": (3 * width,)}
        shapes |= {f"h.{i}.attn.c_proj.weight": (width, width), f"h.{i}.attn.c_proj.bias": (width,)}
        shapes |= _scale_and_shift(f"h.{i}.ln_2", width)
        shapes |= {f"h.{i}.mlp.c_fc.weight": (width, 4 * width), f"h.{i}.mlp.c_fc.bias": (4 * width,)}
        shapes |= {f"h.{i}.mlp.c_proj.weight": (4 * width, width), f"h.{i}.mlp.c_proj.bias": (width,)}
    return shapes | _scale_and_shift("ln_f", width)


def bert_large(layers: int = 24, width: int = 1024, vocabulary: int = 30522, context: int = 512) -> Shapes:
    """Devlin et al., NAACL 2019: encoder and pooler of the large model. 335 M parameters."""
    tables = {"word": vocabulary, "position": context, "token_type": 2}
    shapes: Shapes = {f"embeddings.{name}_embeddings.weight": (rows, width) for name, rows in tables.items()}
    shapes |= _scale_and_shift("embeddings.LayerNorm", width)
    for i in range(layers):
        layer = f"encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _linear(f"{layer}.attention.{name}", width, width)
        shapes |= _scale_and_shift(f"{layer}.attention.output.LayerNorm", width)
        shapes |= _linear(f"{layer}.intermediate.dense", width, 4 * width)
        shapes |= _linear(f"{layer}.output.dense", 4 * width, width)
        shapes |= _scale_and_shift(f"{layer}.output.LayerNorm", width)
    return shapes | _linear("pooler.dense", width, width)


def one_embedding(share: float = 0.9, width: int = 128, rows: int = 200_000) -> Shapes:
    """A recommender whose one embedding holds `share` of the parameters, the rest in square layers. 28 M parameters."""
    table = rows * width
    layers = round(table * (1 - share) / share / (width * width + width))
    shapes: Shapes = {"embedding.weight": (rows, width)}
    for i in range(layers):
        shapes |= _linear(f"layer{i}", width, width)
    return shapes


MODELS: dict[str, Callable[[], Shapes]] = {"resnet50": resnet50, "gpt2": gpt2, "bert-large": bert_large, "one-embedding": one_embedding}
"""Every model by the name that commands know it by."""


def shapes_named(name: str) -> Shapes:
    """Of a well-known model, or of the tensors in a file of weights (.safetensors). Raises ConfigError."""
    if name in MODELS:
        return MODELS[name]()
    if not name.endswith(".safetensors"):
        raise ConfigError(f"{name} is no model: {', '.join(MODELS)}, a file of weights (.safetensors), or a task (package.module:Task)")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(name, framework="np") as file:
            return {tensor: tuple(file.get_slice(tensor).get_shape()) for tensor in file.keys()}  # noqa: SIM118 - no dictionary
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{name} cannot be read as weights: {error}") from error


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _scale_and_shift(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
