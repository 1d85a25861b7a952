"""python -m cpt_residual.cli"""

from cpt_residual.cli import main

if __name__ == "__main__":
    main()
