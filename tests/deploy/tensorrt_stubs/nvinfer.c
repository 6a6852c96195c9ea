/* The nine symbols that NVIDIA's Python bindings of TensorRT need from its three libraries.  Each returns nothing, as the
   real ones do where there is no GPU: importing the bindings works, and every class, member and signature is genuine. */
#define RETURNS_NOTHING(symbol) void *symbol(void) { return 0; }

RETURNS_NOTHING(createInferBuilder_INTERNAL)
RETURNS_NOTHING(createInferRefitter_INTERNAL)
RETURNS_NOTHING(createInferRuntime_INTERNAL)
RETURNS_NOTHING(createNvOnnxParser_INTERNAL)
RETURNS_NOTHING(createNvOnnxParserRefitter_INTERNAL)
RETURNS_NOTHING(getBuilderPluginRegistry)
RETURNS_NOTHING(getPluginRegistry)
RETURNS_NOTHING(getNvOnnxParserVersion)
RETURNS_NOTHING(initLibNvInferPlugins)
