/* The part of CANN that torch_npu links against, on a machine without an NPU.
 *
 * "Device memory" is host memory, streams have always finished, and HCCL's collectives go through a
 * file in /dev/shm that all ranks of this machine map. There are no operators: they are computed by
 * `overlay.py`, and what it does not know fails with the operator's name instead of giving zeros.
 *
 * One library under six names (libascendcl.so, libhccl.so, ...). Settings, from the environment:
 *   EMULATED_NPUS            how many devices the machine has; 2 if it is not set
 *   EMULATED_SOC             the chip's name; Ascend910B1 if it is not set
 *   ASCEND_RT_VISIBLE_DEVICES  as CANN reads it: indices, up to the first that is not there
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef void *handle;
enum { DONE = 0, NOT_SUPPORTED = 200000, NO_MEMORY = 200001, NO_DEVICE = 107001 };

/* What needs no answer but success, and what an emulation must not pretend to have done. */
#define SUCCEEDS(name) int name(void) { return DONE; }
#define FAILS(name) \
    int name(void) { fprintf(stderr, "emulated CANN: " #name " is not there\n"); return NOT_SUPPORTED; }

/* ---- devices ---- */

static _Thread_local int current_device;

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text && *text ? atoi(text) : otherwise;
}

int aclrtGetDeviceCount(uint32_t *count) {
    int present = number("EMULATED_NPUS", 2), seen = 0;
    const char *visible = getenv("ASCEND_RT_VISIBLE_DEVICES");
    *count = present;
    if (!visible) return DONE;
    for (const char *at = visible; *at; seen++) {
        char *end;
        long index = strtol(at, &end, 10);
        if (end == at || index < 0 || index >= present) break;
        at = *end == ',' ? end + 1 : end;
    }
    *count = seen;
    return DONE;
}

int aclrtSetDevice(int32_t device) {
    uint32_t count;
    aclrtGetDeviceCount(&count);
    if (device < 0 || (uint32_t)device >= count) return NO_DEVICE;
    current_device = device;
    return DONE;
}

int aclrtGetDevice(int32_t *device) { *device = current_device; return DONE; }
int aclrtGetCurrentContext(handle *context) { *context = &current_device; return DONE; }
const char *aclrtGetSocName(void) {
    const char *name = getenv("EMULATED_SOC");
    return name && *name ? name : "Ascend910B1";
}
int aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *active) {
    *flags = 0; *active = 1; return DONE;
}
int aclGetDeviceCapability(uint32_t device, int what, int64_t *value) {
    *value = 24; return DONE;
}
int aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer) {
    *can = 1; return DONE;
}
int aclrtGetSysParamOpt(int option, int64_t *value) { *value = 0; return DONE; }
int aclrtCtxGetSysParamOpt(int option, int64_t *value) { *value = 0; return DONE; }
const char *aclGetRecentErrMsg(void) { return "emulated CANN: see the message above"; }
SUCCEEDS(aclInit) SUCCEEDS(aclFinalize) SUCCEEDS(aclrtResetDevice) SUCCEEDS(aclrtSetCurrentContext)
SUCCEEDS(aclrtDeviceEnablePeerAccess) SUCCEEDS(aclAppLog) SUCCEEDS(aclrtProcessReport)
SUCCEEDS(aclrtSetStreamOverflowSwitch) SUCCEEDS(aclrtSetSysParamOpt)
SUCCEEDS(aclrtCtxSetSysParamOpt) SUCCEEDS(aclrtSetDeviceSatMode) SUCCEEDS(aclrtSetOpWaitTimeout)
SUCCEEDS(aclrtSetOpExecuteTimeOut)
SUCCEEDS(aclrtSynchronizeDevice) SUCCEEDS(aclrtSynchronizeDeviceWithTimeout)
FAILS(aclrtDeviceGetBareTgid)

/* ---- memory ---- */

static const size_t TOTAL = (size_t)64 << 30;
static atomic_size_t used;

int aclrtMalloc(void **pointer, size_t size, int policy) {
    if (posix_memalign(pointer, 512, size + 32)) return NO_MEMORY;
    used += size;
    return DONE;
}
int aclrtMallocAlign32(void **pointer, size_t size, int policy) {
    return aclrtMalloc(pointer, size, policy);
}
int aclrtMallocHost(void **pointer, size_t size) {
    return posix_memalign(pointer, 64, size) ? NO_MEMORY : DONE;
}
int aclrtFree(void *pointer) { free(pointer); return DONE; }
int aclrtFreeHost(void *pointer) { free(pointer); return DONE; }
int aclrtGetMemInfo(int kind, size_t *free_bytes, size_t *total) {
    *total = TOTAL; *free_bytes = TOTAL - used % TOTAL; /* of what was ever taken */
    return DONE;
}
int aclrtMemcpy(void *to, size_t room, const void *from, size_t size, int kind) {
    if (size > room) return NOT_SUPPORTED;
    memmove(to, from, size);
    return DONE;
}
int aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t size, int kind, handle stream) {
    return aclrtMemcpy(to, room, from, size, kind);
}
int aclrtMemset(void *to, size_t room, int32_t value, size_t size) {
    if (size > room) return NOT_SUPPORTED;
    memset(to, value, size);
    return DONE;
}
int aclrtMemsetAsync(void *to, size_t room, int32_t value, size_t size, handle stream) {
    return aclrtMemset(to, room, value, size);
}
FAILS(aclrtMallocPhysical) FAILS(aclrtFreePhysical) FAILS(aclrtReserveMemAddress)
FAILS(aclrtReleaseMemAddress) FAILS(aclrtMapMem) FAILS(aclrtUnmapMem)
FAILS(aclrtMemExportToShareableHandle) FAILS(aclrtMemImportFromShareableHandle)
FAILS(aclrtMemSetPidToShareableHandle)

/* ---- streams and events: everything has happened when the call returns ---- */

static int make(handle *made) { *made = malloc(8); return *made ? DONE : NO_MEMORY; }
int aclrtCreateStream(handle *stream) { return make(stream); }
int aclrtCreateStreamWithConfig(handle *stream, uint32_t priority, uint32_t flag) {
    return make(stream);
}
int aclrtCreateEventExWithFlag(handle *event, uint32_t flag) { return make(event); }
int aclrtCreateEventWithFlag(handle *event, uint32_t flag) { return make(event); }
int aclrtDestroyStream(handle stream) { free(stream); return DONE; }
int aclrtDestroyStreamForce(handle stream) { free(stream); return DONE; }
int aclrtDestroyEvent(handle event) { free(event); return DONE; }
int aclrtStreamQuery(handle stream, int *status) { *status = 0; return DONE; }
int aclrtStreamGetId(handle stream, int32_t *id) { *id = 0; return DONE; }
int aclrtQueryEventStatus(handle event, int *status) { *status = 1; return DONE; }
int aclrtQueryEventWaitStatus(handle event, int *status) { *status = 0; return DONE; }
int aclrtEventElapsedTime(float *milliseconds, handle start, handle end) {
    *milliseconds = 0.001f; return DONE;
}
SUCCEEDS(aclrtRecordEvent) SUCCEEDS(aclrtResetEvent) SUCCEEDS(aclrtStreamWaitEvent)
SUCCEEDS(aclrtSynchronizeEvent) SUCCEEDS(aclrtSynchronizeStream)
SUCCEEDS(aclrtSynchronizeStreamWithTimeout)

/* ---- operators and profiling: none ---- */

static int attribute;
handle aclopCreateAttr(void) { return &attribute; }

typedef struct { int64_t rows; } Description; /* of a matrix; a vector is one row */
Description *aclCreateTensorDesc(int type, int dimensions, const int64_t *sizes, int format) {
    Description *made = malloc(sizeof *made);
    made->rows = 1;
    for (int i = 0; i + 1 < dimensions; i++) made->rows *= sizes[i];
    return made;
}
int aclDestroyTensorDesc(Description *described) { free(described); return DONE; }

typedef struct { char *data; size_t size; } Buffer;
Buffer *aclCreateDataBuffer(void *data, size_t size) {
    Buffer *made = malloc(sizeof *made);
    made->data = data, made->size = size;
    return made;
}
int aclDestroyDataBuffer(Buffer *buffer) { free(buffer); return DONE; }

/* torch_npu calls three operators past torch's dispatcher: in collectives Fill(shape, value) and a
 * PadV3(row, amounts, ...) that lengthens a row to a multiple of 32 bytes, and Identity to change the
 * format of a convolution's weight into the same one. */
int aclopCompileAndExecute(const char *name, int inputs, Description **described, Buffer **input,
                           int outputs, Description **made, Buffer **output) {
    if (!strcmp(name, "Fill") && inputs == 2 && input[1]->size) {
        for (size_t at = 0; at + input[1]->size <= output[0]->size; at += input[1]->size)
            memcpy(output[0]->data + at, input[1]->data, input[1]->size);
        return DONE;
    }
    if (!strcmp(name, "Identity") && input[0]->size == output[0]->size) {
        memcpy(output[0]->data, input[0]->data, input[0]->size);
        return DONE;
    }
    if (!strcmp(name, "PadV3") && described[0]->rows == 1) {
        memset(output[0]->data, 0, output[0]->size);
        memcpy(output[0]->data, input[0]->data, input[0]->size);
        return DONE;
    }
    fprintf(stderr, "emulated CANN: the operator %s is not in overlay.py\n", name);
    return NOT_SUPPORTED;
}
SUCCEEDS(aclopDestroyAttr) SUCCEEDS(aclopSetAttrBool) SUCCEEDS(aclopSetAttrDataType)
SUCCEEDS(aclopSetAttrFloat) SUCCEEDS(aclopSetAttrInt) SUCCEEDS(aclopSetAttrListBool)
SUCCEEDS(aclopSetAttrListFloat) SUCCEEDS(aclopSetAttrListInt) SUCCEEDS(aclopSetAttrListListInt)
SUCCEEDS(aclopSetAttrString) SUCCEEDS(aclSetTensorDescName) SUCCEEDS(aclSetTensorFormat) SUCCEEDS(aclSetTensorPlaceMent)
SUCCEEDS(aclSetTensorShape) SUCCEEDS(aclSetCompileopt) SUCCEEDS(aclmdlInitDump)
SUCCEEDS(aclmdlSetDump) SUCCEEDS(aclmdlFinalizeDump) FAILS(aclGetTensorDescDimV2)
FAILS(aclGetTensorDescFormat) FAILS(aclGetTensorDescNumDims) FAILS(aclGetTensorDescType)
FAILS(aclrtBinaryGetFunction) FAILS(aclrtBinaryLoadFromData) FAILS(aclrtGetFunctionAddr)
FAILS(rtDevBinaryRegister) FAILS(rtFunctionRegister) FAILS(rtKernelLaunch) FAILS(rtGetC2cCtrlAddr)
SUCCEEDS(MsprofRegisterCallback) SUCCEEDS(MsprofReportAdditionalInfo) SUCCEEDS(MsprofReportApi)
SUCCEEDS(MsprofReportCompactInfo) SUCCEEDS(MsprofSysCycleTime) SUCCEEDS(MsprofGetHashId)

/* ---- HCCL ---- */

enum { OK = 0, PARAMETER = 1, NO_SUPPORT = 5, SYSTEM_CALL = 8, TIMEOUT = 9 };
enum { SUM, PROD, MAX, MIN };
enum { MOST_RANKS = 8, CHUNK = 1 << 20, ROOT_INFO = 4108, PATIENCE = 60 };

typedef struct {
    _Atomic uint64_t arrived[MOST_RANKS];
    size_t sent[MOST_RANKS];
    char slot[MOST_RANKS][CHUNK];
} Shared;
typedef struct {
    uint32_t ranks, rank;
    char name[128];
    Shared *shared;
} Group;

int HcclGetRootInfo(char *info) {
    static atomic_int groups;
    memset(info, 0, ROOT_INFO);
    snprintf(info, 100, "/dev/shm/emulated-hccl-%d-%d", getpid(), groups++);
    int file = open(info, O_CREAT | O_RDWR, 0600);
    int failed = file < 0 || ftruncate(file, sizeof(Shared));
    close(file);
    return failed ? SYSTEM_CALL : OK;
}

static int meet(Group *group) { /* a barrier of all ranks */
    uint64_t mine = ++group->shared->arrived[group->rank];
    time_t end = time(NULL) + PATIENCE;
    for (uint32_t rank = 0; rank < group->ranks; rank++)
        while (group->shared->arrived[rank] < mine) {
            if (time(NULL) > end) return TIMEOUT;
            usleep(20);
        }
    return OK;
}

int HcclCommInitRootInfo(uint32_t ranks, const char *info, uint32_t rank, Group **made) {
    Group *group = calloc(1, sizeof *group);
    int file = open(info, O_RDWR);
    if (ranks > MOST_RANKS || file < 0) return SYSTEM_CALL;
    group->ranks = ranks, group->rank = rank;
    strncpy(group->name, info, sizeof group->name - 1);
    group->shared = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    *made = group;
    int failed = meet(group);
    unlink(info); /* all ranks have it now */
    return failed;
}
int HcclCommInitRootInfoConfig(uint32_t ranks, const char *info, uint32_t rank, handle config,
                               Group **made) {
    return HcclCommInitRootInfo(ranks, info, rank, made);
}
int HcclCommDestroy(Group *group) { munmap(group->shared, sizeof(Shared)); free(group); return OK; }
int HcclGetCommName(Group *group, char *name) { strcpy(name, group->name); return OK; }
int HcclGetCommAsyncError(Group *group, int *error) { *error = OK; return OK; }
const char *HcclGetErrorString(int code) { return "emulated HCCL"; }

static size_t width(int type) {
    static const size_t bytes[] = {1, 2, 4, 2, 4, 8, 8, 1, 2, 4, 8, 2};
    return type >= 0 && type < 12 ? bytes[type] : 0;
}

#define COMBINE(type, read, write)                                                       \
    for (size_t i = 0; i < count; i++) {                                                 \
        type x = read(((type##_cell *)into)[i]), y = read(((type##_cell *)from)[i]);     \
        type z = op == SUM ? x + y : op == PROD ? x * y : op == MAX ? (x > y ? x : y)    \
                                                                    : (x < y ? x : y);   \
        ((type##_cell *)into)[i] = write(z);                                             \
    }                                                                                    \
    return OK;
#define SAME(x) (x)
typedef float float_cell;
typedef int32_t int32_t_cell;
typedef int64_t int64_t_cell;
typedef int8_t int8_t_cell;

static float from_bfloat16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16; float value; memcpy(&value, &wide, 4); return value;
}
static uint16_t to_bfloat16(float value) { /* to nearest, ties to even */
    uint32_t wide; memcpy(&wide, &value, 4);
    if (value != value) return 0x7fc0;
    return (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
}
static int combine(void *into, const void *from, size_t count, int type, int op) {
    if (type == 0) { COMBINE(int8_t, SAME, SAME) }
    if (type == 2) { COMBINE(int32_t, SAME, SAME) }
    if (type == 5) { COMBINE(int64_t, SAME, SAME) }
    if (type == 4) { COMBINE(float, SAME, SAME) }
#define float_cell _Float16
    if (type == 3) { COMBINE(float, (float), (_Float16)) }
#undef float_cell
#define float_cell uint16_t
    if (type == 11) { COMBINE(float, from_bfloat16, to_bfloat16) }
#undef float_cell
    return NO_SUPPORT; /* as HCCL: no float64, no unsigned */
}

static size_t part_of(size_t size, size_t start) {
    return start >= size ? 0 : size - start < CHUNK ? size - start : CHUNK;
}

/* Every rank shows `size` bytes; those of rank `source` go to `to`, or, for source -1, all of them
 * combined. A rank whose `to` is NULL only takes part. */
static int share(Group *group, const void *from, void *to, size_t size, int source, int type, int op) {
    if (!width(type)) return NO_SUPPORT;
    for (size_t start = 0; start < size; start += CHUNK) {
        size_t part = part_of(size, start);
        int failed = 0;
        if (from) memcpy(group->shared->slot[group->rank], (const char *)from + start, part);
        if ((failed = meet(group))) return failed;
        uint32_t first = source < 0 ? 0 : source;
        if (to) memcpy((char *)to + start, group->shared->slot[first], part);
        for (uint32_t rank = 1; to && source < 0 && !failed && rank < group->ranks; rank++)
            failed = combine((char *)to + start, group->shared->slot[rank], part / width(type), type, op);
        int late = meet(group);
        if (failed || late) return failed ? failed : late;
    }
    return OK;
}

int HcclAllReduce(void *from, void *to, uint64_t count, int type, int op, Group *group, handle s) {
    return share(group, from, to, count * width(type), -1, type, op);
}
int HcclReduce(void *from, void *to, uint64_t count, int type, int op, uint32_t root, Group *group,
               handle s) {
    return share(group, from, group->rank == root ? to : NULL, count * width(type), -1, type, op);
}
int HcclBroadcast(void *at, uint64_t count, int type, uint32_t root, Group *group, handle s) {
    return share(group, at, at, count * width(type), root, type, SUM);
}
int HcclAllGather(void *from, char *to, uint64_t count, int type, Group *group, handle s) {
    size_t size = count * width(type);
    int failed = 0;
    for (uint32_t rank = 0; rank < group->ranks && !failed; rank++)
        failed = share(group, from, to + rank * size, size, rank, type, SUM);
    return failed;
}
static int distribute(Group *group, char *from, void *to, size_t size, int source, int type, int op) {
    int failed = 0;
    for (uint32_t rank = 0; rank < group->ranks && !failed; rank++)
        failed = share(group, from ? from + rank * size : NULL, rank == group->rank ? to : NULL, size,
                       source, type, op);
    return failed;
}
int HcclReduceScatter(char *from, void *to, uint64_t count, int type, int op, Group *group, handle s) {
    return distribute(group, from, to, count * width(type), -1, type, op);
}
int HcclScatter(char *from, void *to, uint64_t count, int type, uint32_t root, Group *group, handle s) {
    from = group->rank == root ? from : NULL;
    return distribute(group, from, to, count * width(type), root, type, SUM);
}

/* By rounds: in round k every rank sends to the one k places on. */
int HcclAlltoAllV(const char *from, const uint64_t *counts, const uint64_t *starts, int type, char *to,
                  const uint64_t *wanted, const uint64_t *places, int as, Group *group, handle s) {
    Shared *shared = group->shared;
    uint32_t ranks = group->ranks, me = group->rank;
    size_t bytes = width(type), longest;
    int failed = bytes && type == as ? OK : NO_SUPPORT;
    for (uint32_t round = 0; round < ranks && !failed; round++) {
        uint32_t next = (me + round) % ranks, source = (me + ranks - round) % ranks;
        size_t size = shared->sent[me] = counts[next] * bytes, room = wanted[source] * bytes;
        if ((failed = meet(group))) return failed;
        longest = 0;
        for (uint32_t rank = 0; rank < ranks; rank++)
            if (shared->sent[rank] > longest) longest = shared->sent[rank];
        int fits = shared->sent[source] == room;
        if ((failed = meet(group)) || !fits) return fits ? failed : PARAMETER;
        for (size_t at = 0; at < longest && !failed; at += CHUNK) {
            memcpy(shared->slot[me], from + starts[next] * bytes + at, part_of(size, at));
            if ((failed = meet(group))) return failed;
            memcpy(to + places[source] * bytes + at, shared->slot[source], part_of(room, at));
            failed = meet(group);
        }
    }
    return failed;
}
int HcclBarrier(Group *group, handle s) { return meet(group); }

/* torch_npu makes a group of two for each pair that sends and receives. */
int HcclSend(void *from, uint64_t count, int type, uint32_t peer, Group *group, handle s) {
    return group->ranks == 2 ? share(group, from, NULL, count * width(type), 0, type, SUM) : NO_SUPPORT;
}
int HcclRecv(void *to, uint64_t count, int type, uint32_t peer, Group *group, handle s) {
    return group->ranks == 2 ? share(group, NULL, to, count * width(type), peer, type, SUM) : NO_SUPPORT;
}
