"""Which system each MIL operation was last defined for, as Core ML's own statistics name it.

`metadata.json` counts `Ios16.einsum` in a function of opset iOS 17: the number is that of the
operation's newest definition that the opset knows, and none is written for one of iOS 15. Apps
read it (MochiDiffusion tells split_einsum by `Ios16.einsum`).

Learned from compiled models and from published compute plans, which print the same names
(`ios18.silu`, `ios16.reduce_mean`, `pad`). Where neither shows an operation, its kind decides:
all unary functions, for example, were redefined together.
"""

from __future__ import annotations

# Definitions after the first one, which is iOS 15's unless the operation is newer.
_KINDS: dict[tuple[int, ...], str] = {
    (): """
        argsort band_part classify cond const depth_to_space fill flatten2d identity list_gather
        list_length list_read list_scatter list_write make_list non_zero one_hot pad
        pixel_shuffle random_bernoulli random_categorical random_normal random_uniform range_1d
        select shape space_to_batch batch_to_space space_to_depth split stack tile
        upsample_nearest_neighbor while_loop
        """,
    (16,): """
        avg_pool constexpr_affine_dequantize cumsum einsum fill_like l2_pool max_pool
        pixel_unshuffle reduce_l1_norm reduce_l2_norm reduce_log_sum reduce_log_sum_exp
        reduce_max reduce_mean reduce_min reduce_prod reduce_sum reduce_sum_square
        resize_nearest_neighbor upsample_bilinear
        """,
    (16, 17): """
        crop_resize non_maximum_suppression reduce_argmax reduce_argmin resample reshape_like
        resize_bilinear
        """,
    (16, 18): """
        constexpr_cast constexpr_sparse_to_dense gelu relu relu6 sigmoid silu softmax softplus
        softsign
        """,
    (16, 18, 19): "constexpr_lut_to_dense",
    (16, 17, 18): """
        abs acos asin atan atanh batch_norm cast ceil clamped_relu clip conv conv_transpose cos
        cosh elu equal erf exp exp2 floor gather gather_along_axis gather_nd greater
        greater_equal gru instance_norm inverse l2_norm layer_norm leaky_relu less less_equal
        linear linear_activation local_response_norm log logical_and logical_not logical_or
        logical_xor lstm matmul not_equal prelu reshape rnn round rsqrt scaled_tanh sigmoid_hard
        sign sin sinh softplus_parametric sqrt square tan tanh threshold thresholded_relu topk
        """,
    (16, 17, 18, 19): "add floor_div maximum minimum mod mul pow real_div sub",
    (17,): "dequantize quantize resize",
    (17, 18): """
        concat expand_dims reverse reverse_sequence scatter scatter_along_axis scatter_nd
        slice_by_index slice_by_size sliding_windows squeeze transpose
        """,
    (18,): """
        constexpr_blockwise_shift_scale constexpr_lut_to_sparse
        constexpr_sparse_blockwise_shift_scale read_state scaled_dot_product_attention
        slice_update write_state
        """,
}
DEFINED: dict[str, tuple[int, ...]] = {
    op: versions for versions, ops in _KINDS.items() for op in ops.split()
}


def versioned_name(op: str, opset: int) -> str:
    """An operation as the statistics name it.

    Args:
        op: the MIL type.
        opset: of its function, as the year of iOS.

    >>> versioned_name("reduce_mean", 18), versioned_name("split", 18)
    ('Ios16.reduceMean', 'Split')
    """
    first, *others = op.split("_")
    camel = first + "".join(word[:1].upper() + word[1:] for word in others)
    version = max((v for v in DEFINED.get(op, ()) if v <= opset), default=None)
    return f"Ios{version}.{camel}" if version else camel[:1].upper() + camel[1:]
