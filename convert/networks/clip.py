"""SDXL's text encoders (transformers' CLIPTextModel and CLIPTextModelWithProjection)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Var

from convert.checkpoint.configs import LEGACY_EOS, CLIPConfig
from convert.checkpoint.tensors import Tensor
from convert.components import MAX_TOKENS
from convert.networks.graph import Input, Module, Network, build
from convert.networks.layers import activation, cast, layer_norm, linear, to_float32
from convert.weights.compress import NONE, Compression

# Finite, so that no palette and no fp16 sum meets an infinity; exp(-1e4) is 0 in either dtype.
MASKED = -1e4


def text_encoder(
    c: CLIPConfig,
    tensors: Mapping[str, Tensor],
    *,
    inputs: Mapping[str, Input],
    dtype: np.dtype | type,
    target: Any,
    compression: Compression = NONE,
) -> Network:
    """A CLIP text encoder: `input_ids` float32 [1, 77] → two float32 outputs.

    `hidden_embeds` [1, 77, C] is the output of the last layer but one; `pooled_outputs` [1, C] is
    the normalised last state at the end-of-text token, projected if the config says so.

    Args:
        tensors: the checkpoint's tensors, without the `text_model.` prefix.
        inputs: as the table of components has them.
        dtype: of weights and activations.
        target: coremltools' opset version.
        compression: of the weights.

    Raises:
        InputError: the tensors do not fit the config.
    """

    def body(m: Module, input_ids: Var) -> dict[str, Var]:
        ids = cast(m, input_ids, "int32", name="input_ids_int32")
        x = embed(m["embeddings"], c, ids)
        mask = np.triu(np.full((MAX_TOKENS, MAX_TOKENS), MASKED, m.graph.dtype), k=1)
        causal = m.graph.constant("causal_mask", mask[None, None])
        for i in range(c.layers):
            hidden = x  # after the loop: what the last layer was given
            x = layer(m["encoder"]["layers"][i], c, x, causal)
        x = layer_norm(m["final_layer_norm"], x, axis=-1, epsilon=c.epsilon)
        pooled = pool(m["pooled"], c, ids, x)
        if c.projection is not None:
            pooled = linear(m["text_projection"], pooled, c.projection, bias=False)
        return {
            "hidden_embeds": to_float32(m["hidden"], hidden),
            "pooled_outputs": to_float32(m["pooled"], pooled),
        }

    return build(tensors, inputs, body, dtype=dtype, target=target, compression=compression)


def embed(m: Module, c: CLIPConfig, ids: Var) -> Var:
    """Token and position embeddings: ids int32 [1, 77] → [1, 77, C]."""
    # A negative index counts from the end; coremltools writes this for every torch embedding.
    valid = m.emit("greater_equal", x=ids, y=0)
    ids = m.emit("select", cond=valid, a=ids, b=m.emit("add", x=ids, y=c.vocabulary))
    table = m["token_embedding"].weight("weight", (c.vocabulary, c.width))
    tokens = m["token_embedding"].emit(
        "gather", name="", x=table, indices=ids, axis=0, batch_dims=0, validate_indices=False
    )
    positions = m["position_embedding"].weight(
        "weight", (MAX_TOKENS, c.width), (1, MAX_TOKENS, c.width)
    )
    return m.emit("add", name="", x=tokens, y=positions)


def layer(m: Module, c: CLIPConfig, x: Var, causal: Var) -> Var:
    """CLIPEncoderLayer: [1, S, C] → [1, S, C]."""
    norm = layer_norm(m["layer_norm1"], x, axis=-1, epsilon=c.epsilon)
    x = m.emit("add", name="attn_add", x=x, y=attention(m["self_attn"], c, norm, causal))
    norm = layer_norm(m["layer_norm2"], x, axis=-1, epsilon=c.epsilon)
    hidden = activation(m["mlp"], c.act, linear(m["mlp"]["fc1"], norm, c.intermediate))
    return m.emit("add", name="", x=x, y=linear(m["mlp"]["fc2"], hidden, c.width))


def attention(m: Module, c: CLIPConfig, x: Var, causal: Var) -> Var:
    """Causal self-attention: [1, S, C] → [1, S, C]."""
    size = c.width // c.heads
    q, k, v = (
        m[name].emit("reshape", x=linear(m[name], x, c.width), shape=[1, MAX_TOKENS, c.heads, size])
        for name in ("q_proj", "k_proj", "v_proj")
    )
    q = m.emit("mul", x=q, y=size**-0.5)
    q, k, v = (m.emit("transpose", x=t, perm=[0, 2, 1, 3]) for t in (q, k, v))  # [1, H, S, C/H]
    weights = m.emit("matmul", x=q, y=k, transpose_x=False, transpose_y=True)  # [1, H, S, S]
    weights = m.emit("softmax", x=m.emit("add", x=weights, y=causal), axis=-1)
    x = m.emit("matmul", x=weights, y=v, transpose_x=False, transpose_y=False)
    x = m.emit("transpose", x=x, perm=[0, 2, 1, 3])
    return linear(m["out_proj"], m.emit("reshape", x=x, shape=[1, MAX_TOKENS, c.width]), c.width)


def pool(m: Module, c: CLIPConfig, ids: Var, x: Var) -> Var:
    """The state at the end-of-text token: ids int32 [1, 77], x [1, 77, C] → [1, C].

    Configs that still say `eos_token_id` 2 mean the position of the highest token id; all others
    the first position of that token (transformers' CLIPTextTransformer).
    """
    if c.eos_token_id != LEGACY_EOS:
        ids = cast(m, m.emit("equal", x=ids, y=c.eos_token_id), "int32")
    position = m.emit("reduce_argmax", x=ids, axis=-1, keep_dims=False, output_dtype="int32")
    index = m.emit(
        "stack", values=[m.graph.constant("batch", np.zeros(1, np.int32)), position], axis=1
    )  # [1, 2]
    index = cast(m, index, "uint16")
    return m.emit("gather_nd", name="", x=x, indices=index, batch_dims=0, validate_indices=False)
