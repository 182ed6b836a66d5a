def report(x):
    pass
