"""Every differentiable operator of PyTorch's own database, through a server, bit for bit against eager autograd."""
