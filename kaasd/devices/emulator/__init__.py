"""The emulated device: PTX compiled to native code and run on the CPU, with every access checked."""
