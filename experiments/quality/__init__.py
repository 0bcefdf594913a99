"""Quality of trained models: the results table, studies of the recipe, samplers, and other libraries' recipes."""
