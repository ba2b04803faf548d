"""A float model in the types of llama.cpp: `sqft quantize --grid q4_0`.

maker       what the verb calls, by its hook
names       the mixes of types
run         the float file, llama.cpp's quantizer over it, the report
importance  the importance matrix: the mean square of every input of every linear layer
compensate  GPTQ on the scales that the quantizer chose
"""
