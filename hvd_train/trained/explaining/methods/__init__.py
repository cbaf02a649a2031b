"""Methods that attribute an output to parts of a sample; the contract is `explaining/method.py`."""
