"""DoRA's magnitude without its low-rank part: one trained length per output of a linear layer."""

from dataclasses import dataclass

from vitune.methods.authoring import LinearLayer, MethodConfig, linear_shape, require_linear


@dataclass
class MagnitudeConfig(MethodConfig):
    """W' = diag(m / ‖W‖) W, the norm over each row. Shapes: m (o,)."""

    method = "magnitude"
    title = "Magnitude"
    source = "after DoRA, ICML 2024"
    formula = "Σ out over linears"
    default_roles = ("q", "k", "v", "attn_out", "fc1", "fc2")

    def layer_class(self, site, module):
        require_linear(site, module, self.title, roles=self.roles, changes_bias=False)
        return MagnitudeLinear

    def num_parameters(self, model, sites):
        return sum(linear_shape(model, site)[0] for site in sites)


class MagnitudeLinear(LinearLayer):
    """A linear layer whose rows have trained lengths."""

    adapter_layer_names = ("magnitude",)
    no_decay = frozenset({"magnitude"})

    def new_parameters(self, config, shared):
        return {"magnitude": self.original_tensors()["weight"].float().norm(dim=1)}

    def adapt(self, tensors, adapter):
        ratio = self.magnitude[adapter] / self.original_tensors()["weight"].float().norm(dim=1)
        weight = tensors["weight"]
        return {**tensors, "weight": (weight * ratio[:, None]).to(weight.dtype)}
