"""A vision transformer on CIFAR-10 and on scikit-learn's digits."""
