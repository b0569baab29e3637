/* Passes over memory that torch and numpy make one after the other, made once: sums of contributions and the update of
 * parameters and optimizer state, out of place; and copies that go past the cache. `ps/kernels.py` says when they are used.
 *
 * Products and sums are those of torch's kernels, to the bit: a fused multiply-add stands where theirs has one, and nowhere
 * else (compile with -ffp-contract=off). All functions work without the interpreter's lock.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define FAST __attribute__((target("avx2,fma")))
#else
#define FAST
#endif

#define BLOCK 128 /* elements that are worked on at a time: of all memory together little enough for the first cache */
#define MAX_SLOTS 2

/* Copies; past the cache if `stream`, so that what is overwritten is not read first. */
FAST static void put(char *to, const char *from, size_t size, int stream) {
#if defined(__x86_64__)
    if (stream) {
        size_t head = (size_t)(-(uintptr_t)to & 31), at = 0;
        head = head < size ? head : size;
        memcpy(to, from, head);
        for (at = head; at + 32 <= size; at += 32)
            _mm256_stream_si256((__m256i *)(to + at), _mm256_loadu_si256((const __m256i *)(from + at)));
        memcpy(to + at, from + at, size - at);
        return;
    }
#endif
    memcpy(to, from, size);
}

/* What was streamed is seen by others before anything that is written after it. */
static void settle(int stream) {
#if defined(__x86_64__)
    if (stream)
        _mm_sfence();
#endif
}

/* Sums n elements of all terms from left to right, and divides them. Returns whether all sums are finite. */
FAST static int add_up(float *restrict sum, const float *const *terms, size_t num_terms, size_t at, size_t n, float divisor) {
    int odd = 0;
    memcpy(sum, terms[0] + at, n * sizeof(float));
    for (size_t t = 1; t < num_terms; t++) {
        const float *restrict term = terms[t] + at;
        for (size_t i = 0; i < n; i++)
            sum[i] = sum[i] + term[i];
    }
    for (size_t i = 0; i < n; i++)
        odd |= !(fabsf(sum[i]) <= FLT_MAX);
    if (divisor != 1.0f)
        for (size_t i = 0; i < n; i++)
            sum[i] = sum[i] / divisor;
    return !odd;
}

typedef struct {
    float weight_decay;
    int decoupled;          /* adamw */
    float shrink;           /* 1 - lr weight_decay */
    float step_size;        /* -lr / (1 - beta1^t) */
    float weight1;          /* 1 - beta1 */
    float beta2, weight2;   /* beta2, 1 - beta2 */
    float root2;            /* sqrt(1 - beta2^t) */
    float eps;
} Adam;

FAST static void adam_block(const Adam *a, size_t n, float *restrict g, const float *restrict p, const float *restrict m, const float *restrict v,
                            float *restrict new_p, float *restrict new_m, float *restrict new_v) {
    const float weight1 = a->weight1, beta2 = a->beta2, weight2 = a->weight2, root2 = a->root2, eps = a->eps, step_size = a->step_size;
    const float *from = p;
    if (a->weight_decay != 0.0f) {
        if (a->decoupled) {
            for (size_t i = 0; i < n; i++)
                new_p[i] = p[i] * a->shrink;
            from = NULL;
        } else {
            for (size_t i = 0; i < n; i++)
                g[i] = fmaf(p[i], a->weight_decay, g[i]);
        }
    }
    if (weight1 < 0.5f) /* as torch interpolates */
        for (size_t i = 0; i < n; i++)
            new_m[i] = fmaf(weight1, g[i] - m[i], m[i]);
    else
        for (size_t i = 0; i < n; i++)
            new_m[i] = fmaf(weight1 - 1.0f, g[i] - m[i], g[i]);
    for (size_t i = 0; i < n; i++)
        new_v[i] = fmaf(weight2 * g[i], g[i], v[i] * beta2);
    if (from)
        for (size_t i = 0; i < n; i++)
            new_p[i] = from[i] + step_size * new_m[i] / (sqrtf(new_v[i]) / root2 + eps);
    else
        for (size_t i = 0; i < n; i++)
            new_p[i] = new_p[i] + step_size * new_m[i] / (sqrtf(new_v[i]) / root2 + eps);
}

typedef struct {
    float weight_decay, lr, momentum, weight; /* weight: 1 - dampening */
    int nesterov, first;                      /* first: the velocity starts as the gradient */
} Sgd;

FAST static void sgd_block(const Sgd *s, size_t n, float *restrict g, const float *restrict p, const float *restrict v, float *restrict new_p,
                           float *restrict new_v) {
    const float momentum = s->momentum, weight = s->weight, minus_lr = -s->lr;
    if (s->weight_decay != 0.0f)
        for (size_t i = 0; i < n; i++)
            g[i] = fmaf(p[i], s->weight_decay, g[i]);
    if (momentum != 0.0f) {
        if (s->first)
            memcpy(new_v, g, n * sizeof(float));
        else
            for (size_t i = 0; i < n; i++)
                new_v[i] = fmaf(g[i], weight, v[i] * momentum);
        if (s->nesterov)
            for (size_t i = 0; i < n; i++)
                g[i] = fmaf(new_v[i], momentum, g[i]);
        else
            memcpy(g, new_v, n * sizeof(float));
    }
    for (size_t i = 0; i < n; i++)
        new_p[i] = fmaf(g[i], minus_lr, p[i]);
}

typedef struct {
    Py_buffer *buffers;
    size_t count;
} Buffers;

typedef struct {
    Buffers fresh, old, terms;
} Memory;

static void give_back(Buffers *taken) {
    while (taken->count)
        PyBuffer_Release(&taken->buffers[--taken->count]);
    PyMem_Free(taken->buffers);
    taken->buffers = NULL;
}

/* The buffers of a sequence of objects. -1 with an error set. */
static int take(PyObject *sequence, Buffers *into, int flags) {
    Py_ssize_t count = PySequence_Size(sequence);
    if (count < 0)
        return -1;
    into->buffers = PyMem_Calloc((size_t)count + 1, sizeof(Py_buffer));
    if (!into->buffers) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        int failed = !item || PyObject_GetBuffer(item, &into->buffers[i], flags);
        Py_XDECREF(item);
        if (failed)
            return -1;
        into->count++;
    }
    return 0;
}

static void release(Memory *memory) {
    give_back(&memory->fresh);
    give_back(&memory->old);
    give_back(&memory->terms);
}

static int are_floats(const Buffers *taken, Py_ssize_t size) {
    int fits = size % (Py_ssize_t)sizeof(float) == 0;
    for (size_t i = 0; i < taken->count; i++)
        fits &= taken->buffers[i].len == size && (uintptr_t)taken->buffers[i].buf % sizeof(float) == 0;
    return fits;
}

/* Terms, and parameters and slots, new and old, all of the same number of floats. -1 with an error set. */
static int take_all(Memory *memory, PyObject *fresh, PyObject *old, PyObject *terms, size_t num_slots) {
    if (take(fresh, &memory->fresh, PyBUF_WRITABLE) || take(old, &memory->old, PyBUF_SIMPLE) || take(terms, &memory->terms, PyBUF_SIMPLE))
        return -1;
    if (memory->fresh.count != 1 + num_slots || memory->old.count != 1 + num_slots || !memory->terms.count) {
        PyErr_SetString(PyExc_ValueError, "an update has parameters and slots, new and old, and terms");
        return -1;
    }
    Py_ssize_t size = memory->fresh.buffers[0].len;
    if (!are_floats(&memory->fresh, size) || !are_floats(&memory->old, size) || !are_floats(&memory->terms, size)) {
        PyErr_SetString(PyExc_ValueError, "memory of an update differs in length, or is not of aligned floats");
        return -1;
    }
    return 0;
}

/* Updates block by block; `adam` or `sgd` is given. Returns whether all sums are finite. */
FAST static int update(const Memory *memory, const float *const *terms, const Adam *adam, const Sgd *sgd, float divisor, int stream) {
    size_t size = (size_t)memory->fresh.buffers[0].len / sizeof(float), num_pieces = memory->fresh.count;
    __attribute__((aligned(64))) float sum[BLOCK], fresh[1 + MAX_SLOTS][BLOCK];
    int finite = 1;
    for (size_t at = 0; at < size; at += BLOCK) {
        size_t n = size - at < BLOCK ? size - at : BLOCK;
        const float *old[1 + MAX_SLOTS] = {NULL};
        for (size_t i = 0; i < num_pieces; i++)
            old[i] = (const float *)memory->old.buffers[i].buf + at;
        finite &= add_up(sum, terms, memory->terms.count, at, n, divisor);
        if (adam)
            adam_block(adam, n, sum, old[0], old[1], old[2], fresh[0], fresh[1], fresh[2]);
        else
            sgd_block(sgd, n, sum, old[0], old[1], fresh[0], fresh[1]);
        for (size_t i = 0; i < num_pieces; i++)
            put((char *)memory->fresh.buffers[i].buf + at * sizeof(float), (const char *)fresh[i], n * sizeof(float), stream);
    }
    settle(stream);
    return finite;
}

static PyObject *updated(PyObject *fresh, PyObject *old, PyObject *from, size_t num_slots, const Adam *adam, const Sgd *sgd, double divisor, int stream) {
    Memory memory = {{NULL, 0}, {NULL, 0}, {NULL, 0}};
    PyObject *result = NULL;
    const float **terms = NULL;
    if (!take_all(&memory, fresh, old, from, num_slots)) {
        terms = PyMem_Calloc(memory.terms.count, sizeof(float *));
        if (!terms)
            PyErr_NoMemory();
    }
    if (terms) {
        int finite;
        for (size_t t = 0; t < memory.terms.count; t++)
            terms[t] = memory.terms.buffers[t].buf;
        Py_BEGIN_ALLOW_THREADS
        finite = update(&memory, terms, adam, sgd, (float)divisor, stream);
        Py_END_ALLOW_THREADS
        result = PyBool_FromLong(finite);
    }
    PyMem_Free(terms);
    release(&memory);
    return result;
}

static PyObject *py_adam(PyObject *module, PyObject *args) {
    PyObject *fresh, *old, *terms;
    double divisor, lr, beta1, beta2, eps, weight_decay, updates;
    int decoupled, stream;
    if (!PyArg_ParseTuple(args, "OOOddddddpdp", &fresh, &old, &terms, &divisor, &lr, &beta1, &beta2, &eps, &weight_decay, &decoupled, &updates, &stream))
        return NULL;
    const Adam adam = {
        .weight_decay = (float)weight_decay,
        .decoupled = decoupled,
        .shrink = (float)(1.0 - lr * weight_decay),
        .step_size = (float)-(lr / (1.0 - pow(beta1, updates + 1.0))),
        .weight1 = (float)(1.0 - beta1),
        .beta2 = (float)beta2,
        .weight2 = (float)(1.0 - beta2),
        .root2 = (float)sqrt(1.0 - pow(beta2, updates + 1.0)),
        .eps = (float)eps,
    };
    return updated(fresh, old, terms, 2, &adam, NULL, divisor, stream);
}

static PyObject *py_sgd(PyObject *module, PyObject *args) {
    PyObject *fresh, *old, *terms;
    double divisor, lr, momentum, dampening, weight_decay;
    int nesterov, first, stream;
    if (!PyArg_ParseTuple(args, "OOOdddddppp", &fresh, &old, &terms, &divisor, &lr, &momentum, &dampening, &weight_decay, &nesterov, &first, &stream))
        return NULL;
    const Sgd sgd = {
        .weight_decay = (float)weight_decay,
        .lr = (float)lr,
        .momentum = (float)momentum,
        .weight = (float)(1.0 - dampening),
        .nesterov = nesterov,
        .first = first,
    };
    return updated(fresh, old, terms, momentum != 0.0, NULL, &sgd, divisor, stream);
}

static PyObject *py_copy(PyObject *module, PyObject *args) {
    Py_buffer to, from;
    if (!PyArg_ParseTuple(args, "w*y*", &to, &from))
        return NULL;
    int fits = to.len == from.len;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        put(to.buf, from.buf, (size_t)to.len, 1);
        settle(1);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "a copy is as long as what it copies");
    }
    PyBuffer_Release(&to);
    PyBuffer_Release(&from);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"adam", py_adam, METH_VARARGS, NULL},
    {"sgd", py_sgd, METH_VARARGS, NULL},
    {"copy", py_copy, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "ps._kernels", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        PyErr_SetString(PyExc_ImportError, "this processor has no AVX2 with FMA");
        return NULL;
    }
#endif
    return PyModule_Create(&definition);
}
