"""`python -m autoprog_diffusion` is `autoprog-diffusion`; so is `accelerate launch -m autoprog_diffusion`."""

from autoprog_diffusion.commands.main import main


if __name__ == "__main__":
    main()
