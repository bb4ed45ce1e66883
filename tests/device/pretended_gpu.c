/* CUDA's driver and run time for a GPU whose memory is this process's own and whose kernels do nothing.

   Both libraries in one: what TVM's run time calls of them, and no more. Machine code must hold the kernels that are
   asked for, and a launch must keep to what every GPU allows; what a kernel computes is not pretended. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_FOUND = 500, BAD_LAUNCH = 701, MAJOR = 75, MINOR = 76, MOST_THREADS = 1024, MOST_BLOCKS = 65535 };

typedef struct {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
  void *stream, *attributes;
  unsigned count;
} LaunchConfig;

static const char *const NAME = "a pretended GPU";

static unsigned version(int part) {
  const char *text = getenv("PRETENDED_ARCH");
  int number = text == NULL ? 90 : atoi(text);
  return part == MAJOR ? number / 10 : number % 10;
}

/* The names of an ELF file's sections are in one of them; a kernel has a section of its own. */
static int has_kernel(const char *image, const char *kernel) {
  uint64_t sections, names;
  uint16_t count, of_names;
  char wanted[512];
  memcpy(&sections, image + 40, 8);
  memcpy(&count, image + 60, 2);
  memcpy(&of_names, image + 62, 2);
  memcpy(&names, image + sections + 64 * (uint64_t)of_names + 24, 8);
  snprintf(wanted, sizeof wanted, ".text.%s", kernel);
  for (uint16_t i = 0; i < count; i++) {
    uint32_t at;
    memcpy(&at, image + sections + 64 * (uint64_t)i, 4);
    if (strcmp(image + names + at, wanted) == 0) return 1;
  }
  return 0;
}

int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "%s", NAME); return OK; }
int cuModuleLoadData(void **module, const char *image) {
  if (memcmp(image, "\x7f" "ELF", 4) != 0) return 200;
  *module = (void *)image;
  return OK;
}
int cuModuleUnload(void *module) { return OK; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
  if (!has_kernel(module, name)) return NOT_FOUND;
  *function = strdup(name);
  return OK;
}
int cuFuncSetAttribute(void *function, int attribute, int value) { return OK; }
int cuLaunchKernelEx(const LaunchConfig *c, void *function, void **arguments, void **extra) {
  uint64_t threads = (uint64_t)c->block_x * c->block_y * c->block_z;
  if (c->grid_x == 0 || c->grid_y == 0 || c->grid_z == 0 || threads == 0 || threads > MOST_THREADS) return BAD_LAUNCH;
  if (c->grid_y > MOST_BLOCKS || c->grid_z > MOST_BLOCKS || c->shared_bytes > 48 << 10) return BAD_LAUNCH;
  return OK;
}
int cuGetErrorName(int error, const char **text) { *text = "pretended"; return OK; }
int cuGetErrorString(int error, const char **text) { *text = "of the pretended GPU"; return OK; }
int cuTensorMapEncodeTiled(void) { return 801; }

int cudaGetDeviceCount(int *count) { *count = 1; return OK; }
int cudaGetDevice(int *device) { *device = 0; return OK; }
int cudaSetDevice(int device) { return device == 0 ? OK : 101; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  if (device != 0) return 101;
  *value = attribute == MAJOR || attribute == MINOR ? (int)version(attribute) : 1024;
  return OK;
}
int cudaGetDeviceProperties(char *properties, int device) { strcpy(properties, NAME); return OK; }
int cudaMemGetInfo(size_t *unused, size_t *total) { *unused = *total = (size_t)1 << 30; return OK; }
int cudaMalloc(void **at, size_t size) { *at = aligned_alloc(256, (size + 256) / 256 * 256); return *at ? OK : 2; }
int cudaMallocHost(void **at, size_t size) { return cudaMalloc(at, size); }
int cudaFree(void *at) { free(at); return OK; }
int cudaFreeHost(void *at) { free(at); return OK; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) { memmove(to, from, size); return OK; }
int cudaMemcpyPeerAsync(void *to, int there, const void *from, int here, size_t size, void *stream) { return 801; }
int cudaEventCreate(void **event) { *event = malloc(1); return OK; }
int cudaEventDestroy(void *event) { free(event); return OK; }
int cudaEventRecord(void *event, void *stream) { return OK; }
int cudaEventSynchronize(void *event) { return OK; }
int cudaEventElapsedTime(float *ms, void *first, void *last) { *ms = 0.5f; return OK; }
int cudaStreamCreate(void **stream) { *stream = malloc(1); return OK; }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { *stream = malloc(1); return OK; }
int cudaStreamDestroy(void *stream) { free(stream); return OK; }
int cudaStreamSynchronize(void *stream) { return OK; }
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) { return OK; }
int cudaStreamBeginCapture(void *stream, int mode) { return 801; }
int cudaStreamEndCapture(void *stream, void **graph) { return 801; }
int cudaGraphInstantiate(void **executable, void *graph, unsigned long long flags) { return 801; }
int cudaGraphLaunch(void *executable, void *stream) { return 801; }
int cudaGraphDestroy(void *graph) { return OK; }
int cudaGraphExecDestroy(void *executable) { return OK; }
int cudaGetLastError(void) { return OK; }
int cudaPeekAtLastError(void) { return OK; }
const char *cudaGetErrorName(int error) { return "pretended"; }
const char *cudaGetErrorString(int error) { return "of the pretended GPU"; }
