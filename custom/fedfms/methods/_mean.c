/* A weighted sum of float32 arrays in float64, each read once: what `fedavg.weighted` does, where torch widens in one
 * pass and adds in the next. Optional: built where there is a C compiler when the package is installed.
 *
 * The numbers are added in the order given, as there, and the bits are the same: where the processor has a fused
 * multiply-add, torch uses it, and so must every loop here, its ends included. `fedfms.methods.compiled` looks. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#define BLOCK 4096 /* sums at a time: 32 KiB, near a core while all parts pass by */

/* sum[i] += w[0] a[0][i], then w[1] a[1][i] ...: four at a time, so that a sum is loaded and stored once for four. */
#define ADD_PARTS                                                                                             \
    {                                                                                                         \
        Py_ssize_t k = 0;                                                                                     \
        for (; k + 4 <= count; k += 4) {                                                                      \
            const float *a = parts[k], *b = parts[k + 1], *c = parts[k + 2], *d = parts[k + 3];               \
            const double wa = w[k], wb = w[k + 1], wc = w[k + 2], wd = w[k + 3];                              \
            for (Py_ssize_t i = 0; i < n; i++)                                                                \
                sum[i] = (((sum[i] + wa * a[i]) + wb * b[i]) + wc * c[i]) + wd * d[i];                        \
        }                                                                                                     \
        for (; k < count; k++)                                                                                \
            for (Py_ssize_t i = 0; i < n; i++)                                                                \
                sum[i] += w[k] * parts[k][i];                                                                 \
    }

typedef void Add(double *restrict sum, const float *const *parts, const double *w, Py_ssize_t count, Py_ssize_t n);

static void add_any(double *restrict sum, const float *const *parts, const double *w, Py_ssize_t count, Py_ssize_t n)
ADD_PARTS

static Add *add_parts = add_any;

#if defined(__x86_64__) && defined(__GNUC__)
/* By hand: GCC's target_clones takes no two features for one clone, and a clone without `fma` multiplies and adds. */
__attribute__((target("avx2,fma"))) static void
add_avx2(double *restrict sum, const float *const *parts, const double *w, Py_ssize_t count, Py_ssize_t n)
ADD_PARTS

__attribute__((target("avx512f,avx512vl,avx512dq,fma"))) static void
add_avx512(double *restrict sum, const float *const *parts, const double *w, Py_ssize_t count, Py_ssize_t n)
ADD_PARTS

static void choose(void)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("fma"))
        return;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        add_parts = add_avx512;
    else if (__builtin_cpu_supports("avx2"))
        add_parts = add_avx2;
}
#else
static void choose(void) {}
#endif

/* 0, or -1 where there is no memory. */
static int mean(float *out, Py_ssize_t length, const Py_buffer *parts, const double *w, Py_ssize_t count, double by)
{
    double *sum = PyMem_RawMalloc(BLOCK * sizeof *sum);
    const float **at = PyMem_RawMalloc((size_t)count * sizeof *at);
    if (sum != NULL && at != NULL)
        for (Py_ssize_t start = 0; start < length; start += BLOCK) {
            const Py_ssize_t n = length - start < BLOCK ? length - start : BLOCK;
            memset(sum, 0, (size_t)n * sizeof *sum);
            for (Py_ssize_t k = 0; k < count; k++)
                at[k] = (const float *)parts[k].buf + start;
            add_parts(sum, at, w, count, n);
            for (Py_ssize_t i = 0; i < n; i++)
                out[start + i] = (float)(sum[i] / by);
        }
    const int failed = sum == NULL || at == NULL;
    PyMem_RawFree(sum);
    PyMem_RawFree(at);
    return -failed;
}

/* A contiguous buffer of one C type, of so many items (any number where `items` is below 0). */
static int take(PyObject *from, Py_buffer *into, const char *type, Py_ssize_t items, int flags)
{
    if (PyObject_GetBuffer(from, into, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | flags) < 0)
        return -1;
    if (into->format == NULL || strcmp(into->format, type) != 0 || (items >= 0 && into->len != items * into->itemsize)) {
        PyBuffer_Release(into);
        PyErr_Format(PyExc_ValueError, "an array of type '%s' and the length of the others is needed", type);
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(weighted_doc, "weighted(out, parts, weights, by): out = sum_i weights[i] parts[i] / by; see _mean.pyi.");

static PyObject *weighted(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *out_object, *parts_object, *weights_object, *result = NULL;
    double by;
    if (!PyArg_ParseTuple(args, "OO!Od", &out_object, &PyTuple_Type, &parts_object, &weights_object, &by))
        return NULL;
    const Py_ssize_t count = PyTuple_GET_SIZE(parts_object);
    Py_ssize_t taken = 0;
    Py_buffer out, weights, *parts = PyMem_Calloc((size_t)count + 1, sizeof *parts);
    if (parts == NULL)
        return PyErr_NoMemory();
    if (take(out_object, &out, "f", -1, PyBUF_WRITABLE) < 0)
        goto free_parts;
    if (take(weights_object, &weights, "d", count, 0) < 0)
        goto release_out;
    for (; taken < count; taken++)
        if (take(PyTuple_GET_ITEM(parts_object, taken), &parts[taken], "f", out.len / out.itemsize, 0) < 0)
            goto release_all;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = mean(out.buf, out.len / out.itemsize, parts, weights.buf, count, by);
    Py_END_ALLOW_THREADS
    result = failed ? PyErr_NoMemory() : Py_NewRef(Py_None);

release_all:
    while (taken > 0)
        PyBuffer_Release(&parts[--taken]);
    PyBuffer_Release(&weights);
release_out:
    PyBuffer_Release(&out);
free_parts:
    PyMem_Free(parts);
    return result;
}

static PyMethodDef methods[] = {{"weighted", weighted, METH_VARARGS, weighted_doc}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "_mean", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__mean(void)
{
    choose();
    return PyModuleDef_Init(&module);
}
