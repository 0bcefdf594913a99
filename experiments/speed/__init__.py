"""Speed of training and sampling, compared with other libraries and with the limits of the machine."""
