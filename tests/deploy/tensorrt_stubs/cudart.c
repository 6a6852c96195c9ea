/* A CUDA runtime in host memory, for tests of the code around it: streams run at once, and a captured stream is a list of
   operations that a launch repeats.  It counts what lives and can be told to fail.  It computes nothing and measures nothing. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int cudaError_t;
typedef void *cudaStream_t, *cudaEvent_t, *cudaGraph_t, *cudaGraphExec_t;
struct cudaDeviceProp { char name[256]; };

typedef struct { void *to; const void *from; size_t bytes; void (*work)(void *); void *argument; } Operation;
typedef struct { Operation *operations; size_t count; } Record;
typedef struct { int capturing; Record record; } Stream;

static const char *failing = "";
static int code_of_failure = 0, last_error = 0, live = 0;

#define MAY_FAIL(name) if (!strcmp(failing, name)) return (last_error = code_of_failure)

void standInFail(const char *function, int code) { failing = strdup(function); code_of_failure = code; }
int standInLive(void) { return live; }

static void do_operation(const Operation *operation) {
    if (operation->work) operation->work(operation->argument);
    else memcpy(operation->to, operation->from, operation->bytes);
}

static void put(Stream *stream, Operation operation) {
    if (!stream->capturing) { do_operation(&operation); return; }
    stream->record.operations = realloc(stream->record.operations, (stream->record.count + 1) * sizeof operation);
    stream->record.operations[stream->record.count++] = operation;
}

/* Where a test's stand-in of TensorRT puts its work. */
void standInEnqueue(void *stream, void (*work)(void *), void *argument) {
    Operation operation = {0, 0, 0, work, argument};
    put(stream, operation);
}

static cudaError_t allocate(void **pointer, size_t bytes) { *pointer = malloc(bytes ? bytes : 1); live++; return 0; }
static cudaError_t release(void *pointer) { if (pointer) { free(pointer); live--; } return 0; }

cudaError_t cudaGetDeviceCount(int *count) { MAY_FAIL("cudaGetDeviceCount"); *count = 1; return 0; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    (void)device;
    strcpy(properties->name, "stand-in for a GPU");
    return 0;
}
cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : 1;
    return 0;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) { *available = 1u << 30; *total = 2u << 30; return 0; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 12060; return 0; }
cudaError_t cudaDriverGetVersion(int *version) { *version = 12060; return 0; }
cudaError_t cudaGetLastError(void) { int error = last_error; last_error = 0; return error; }
const char *cudaGetErrorString(cudaError_t error) { return error == 2 ? "out of memory" : "an error that a test asked for"; }

cudaError_t cudaMalloc(void **pointer, size_t bytes) { MAY_FAIL("cudaMalloc"); return allocate(pointer, bytes); }
cudaError_t cudaFree(void *pointer) { return release(pointer); }
cudaError_t cudaMallocHost(void **pointer, size_t bytes) { MAY_FAIL("cudaMallocHost"); return allocate(pointer, bytes); }
cudaError_t cudaFreeHost(void *pointer) { return release(pointer); }

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, cudaStream_t stream) {
    Operation operation = {to, from, bytes, 0, 0};
    (void)kind;
    MAY_FAIL("cudaMemcpyAsync");
    put((Stream *)stream, operation);
    return 0;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags) {
    (void)flags;
    allocate((void **)stream, sizeof(Stream));
    memset((void *)*stream, 0, sizeof(Stream));
    return 0;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return release(stream); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    MAY_FAIL("cudaStreamSynchronize");
    return ((Stream *)stream)->capturing ? 900 : 0;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags) {
    (void)flags;
    return allocate((void **)event, sizeof(struct timespec));
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return release(event); }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    (void)stream;
    clock_gettime(CLOCK_MONOTONIC, (struct timespec *)event);
    return 0;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) { (void)event; return 0; }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    const struct timespec *a = (const void *)start, *b = (const void *)end;
    *milliseconds = (float)((b->tv_sec - a->tv_sec) * 1e3 + (b->tv_nsec - a->tv_nsec) / 1e6);
    return 0;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int mode) {
    (void)mode;
    ((Stream *)stream)->capturing = 1;
    return 0;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    Stream *from = (Stream *)stream;
    Record record = from->record;
    memset(from, 0, sizeof *from);
    *graph = 0;
    if (!strcmp(failing, "cudaStreamEndCapture")) {
        free(record.operations);
        return (last_error = code_of_failure);
    }
    allocate((void **)graph, sizeof record);
    memcpy((void *)*graph, &record, sizeof record);
    return 0;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags) {
    const Record *from = (const void *)graph;
    Record copy = {malloc(from->count * sizeof(Operation) + 1), from->count};
    (void)flags;
    memcpy(copy.operations, from->operations, from->count * sizeof(Operation));
    allocate((void **)executable, sizeof copy);
    memcpy((void *)*executable, &copy, sizeof copy);
    return 0;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    const Record *record = (const void *)executable;
    (void)stream;
    for (size_t i = 0; i < record->count; i++) do_operation(&record->operations[i]);
    return 0;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { free(((Record *)executable)->operations); return release(executable); }
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { free(((Record *)graph)->operations); return release(graph); }
