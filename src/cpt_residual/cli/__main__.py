"""python -m cpt_residual.cli"""

from cpt_residual.cli.app import main

if __name__ == "__main__":
    main()
