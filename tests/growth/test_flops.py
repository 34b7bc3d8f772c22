from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autoprog_diffusion.growth.flops import flop_counter


def test_attention_on_the_cpu_is_counted_as_its_matrix_products_are() -> None:
    query, key = torch.randn(2, 3, 10, 4, requires_grad=True), torch.randn(2, 3, 7, 4, requires_grad=True)
    with flop_counter() as counted:
        output = F.scaled_dot_product_attention(query, key, key)
        forward = counted.get_total_flops()
        output.sum().backward()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as literal:
        F.scaled_dot_product_attention(query, key, key)
    assert forward == literal.get_total_flops() == 2 * (2 * 2 * 3 * 10 * 7 * 4)
    # The fused backward pass computes the scores again: five products instead of four.
    assert counted.get_total_flops() - forward == 5 * (2 * 2 * 3 * 10 * 7 * 4)


def test_torch_still_leaves_it_out() -> None:
    """When this fails torch has a formula, and `growth.flops` is not needed any more."""
    query = torch.randn(1, 1, 4, 4)
    with FlopCounterMode(display=False) as counter:
        F.scaled_dot_product_attention(query, query, query)
    assert counter.get_total_flops() == 0
