"""x"""


def show(workspace, dataset):
    return None
