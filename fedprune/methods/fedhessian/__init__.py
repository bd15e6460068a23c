"""FedHessian: clients send second moments of inputs, the server solves once for all of them."""
