"""`python -m autoprog_diffusion.commands` is `autoprog-diffusion`."""

from autoprog_diffusion.commands.main import main


if __name__ == "__main__":
    main()
