"""How long hypothesis looks for an example."""

from hypothesis import Phase, settings

# for planted bugs: whether there is an example at all, not the smallest one
settings.register_profile("first", phases=[Phase.explicit, Phase.generate], database=None)
