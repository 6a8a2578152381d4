"""SVFit: the r largest singular values of a weight are trained; its singular vectors stay."""

from dataclasses import dataclass

import torch

from vitune.methods.authoring import LinearLayer, MethodConfig, linear_shape, require_linear


@dataclass
class SVFitConfig(MethodConfig):
    """W' = W + U_r diag(δ) V_rᵀ: singular values σ + δ. Shapes: δ (r,); U_r (o, r); V_r (i, r)."""
    rank: int = 8
    method, title, source = "svfit", "SVFit", "SVFit, arXiv 2409.05926"
    default_roles = ("q", "k", "v", "attn_out", "fc1", "fc2")

    def layer_class(self, site, module):
        require_linear(site, module, self.title, roles=self.roles, changes_bias=False)
        return SingularLinear

    def num_parameters(self, model, sites):
        return sum(min(self.rank, *linear_shape(model, site)) for site in sites)


class SingularLinear(LinearLayer):
    """A linear layer with r trained singular values; U and V follow from W and are not saved."""

    adapter_layer_names = ("change",)
    derived_names = ("left", "right")

    def new_derived(self, config):
        left, _, right = torch.linalg.svd(self.original_tensors()["weight"].float(), False)
        return {"left": left[:, : config.rank], "right": right[: config.rank]}

    def new_parameters(self, config, shared):
        return {"change": torch.zeros(min(config.rank, self.num_out, self.num_in))}

    def adapt(self, tensors, adapter):
        weight = tensors["weight"] + self.left[adapter] * self.change[adapter] @ self.right[adapter]
        return {**tensors, "weight": weight.to(tensors["weight"].dtype)}
