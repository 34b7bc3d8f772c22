"""The bundled models and the code that assembles them; the scripts in `recipes/` import it as `assets`."""

import autoprog_diffusion.tasks  # noqa: F401  # sets how much transformers prints, before a pipeline class is imported
