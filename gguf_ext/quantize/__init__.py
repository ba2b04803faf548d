"""`sqft export gguf-quantized`: a float model in the types of llama.cpp, by llama.cpp's own quantizer.

settings    the options
importance  the importance matrix: the mean square of every input of every linear layer
run         the float file, the quantizer, the report
"""
