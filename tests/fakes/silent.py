"""A child that ends with exit status 5 and says nothing."""

import sys

if __name__ == "__main__":
    sys.exit(5)
