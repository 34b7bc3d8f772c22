"""`python -m autoprog_diffusion.commands` is `autoprog-diffusion`."""

from __future__ import annotations

from .main import main


if __name__ == "__main__":
    main()
