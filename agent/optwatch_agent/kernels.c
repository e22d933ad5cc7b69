/* The statistics of many tensors in one pass over memory.
 *
 * Each tensor is cut into leaves of 2,048 elements, small enough that a leaf can be added up again: sums of
 * SHORT elements are float32 and of those float64, and a leaf whose squares are too large for float32 is added
 * up in float64, or the whole tensor where they are too small. Few small ones do not matter beside others: the
 * moments of a unit that is dead fade away. One loop does all the rest, so that it divides while the memory
 * delivers.
 *
 * Maxima and minima are those of the elements' bits, which order as the numbers do and let no NaN get lost.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

enum {
    LEAF = 2048,
#ifdef __AVX__
    SHORT = 256, /* 16 or 32 elements to a lane, so that the error of a norm stays under 1e-6 */
#else
    SHORT = 128,
#endif
};

/* How the elements at an address are stored. */
enum { F32, BF16, F16 };

/* Columns of the result: the sums and peaks, and the counts. */
enum { GRAD, GRAD_MAX, FIRST, SECOND, SECOND_MIN, SECOND_MAX, PARAM, PARAM_MAX, UPDATE, RMS_T, DOT, SMALL, SUMS };
enum { ZEROS, NONFINITE, LOST, COUNTS };

/* Statistics that are the mean of a sum, and the root of it. */
static int is_root(int k) { return k == GRAD || k == FIRST || k == PARAM || k == UPDATE || k == RMS_T; }
static int is_mean(int k) { return is_root(k) || k == SECOND || k == SMALL || k == DOT; }

#define MAGNITUDE 0x7FFFFFFF
#define NORMAL 0x00800000 /* bits of the least number that is not subnormal */
#define LEAST 1e-30 /* mean square below which squares of float32 values lose bits */
#define LEAST_SECOND 1.2e-31 /* mean beside which those that are taken for zeros do not count */
#define MOST 3e38
#define LEAST_PRODUCT 1e-36 /* of two denominators, so that one division serves both */
#define MOST_PRODUCT 1e37

/* The update is (of_grad g + of_first m + inside p) / (of_root r + epsilon) + of_param p, and sqrt(v̂) is hat r. */
typedef struct {
    float of_grad, of_first, inside, of_root, epsilon, of_param, hat;
    float floor; /* of sqrt(v̂) in rms_t */
    float low;   /* 10 ε */
} Numbers;

/* As many elements of a gradient, both moments and a parameter. */
typedef struct {
    const float *g, *m, *v, *p;
    int n;
} Leaf;

typedef struct {
    double grads, firsts, seconds, params, updates, ratios, dots;
    int32_t g_max, p_max, v_min, v_max; /* bits */
    int small, zeros;
    int fine; /* whether a second moment is subnormal */
} Found;

static inline int32_t bits_of(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float number(int32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Bits of a float as an integer that orders as the numbers do, and back. */
static inline int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & MAGNITUDE); }

static inline int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t largest(int32_t a, int32_t b) { return a > b ? a : b; }

/* Elements from `start` on as float: the memory itself, or converted into `room`. */
static const float *read(int64_t address, int64_t kind, int64_t start, int n, float *room)
{
    if (kind == F32)
        return (const float *)(intptr_t)address + start;
    const uint16_t *halves = (const uint16_t *)(intptr_t)address + start;
    if (kind == BF16) {
        for (int j = 0; j < n; j++)
            room[j] = number((int32_t)((uint32_t)halves[j] << 16));
        return room;
    }
    for (int j = 0; j < n; j++) {
        uint32_t half = halves[j], exponent = half & 0x7C00;
        int32_t bits = (int32_t)(((half & 0x7FFF) << 13) + (112 << 23));
        if (exponent == 0) /* zero or subnormal; a subnormal float would count for zero in some trainings */
            bits = bits_of((float)(int32_t)(half & 0x3FF) * 0x1p-24f);
        if (exponent == 0x7C00) /* an infinity or NaN */
            bits = (int32_t)(0x7F800000 | ((half & 0x3FF) << 13));
        room[j] = number(bits | (int32_t)((half & 0x8000) << 16));
    }
    return room;
}

/* What r is: the root of a second moment, itself, or 1 where there is none. */
typedef enum { ROOT, ITSELF, NONE } Kind;

/* Both quotients come from one division, 1 / (wide kept), which must stay in the range of float. The loops are
 * told what to add up in any order; all else is computed as it is written, or it may leave that range. */
static inline Found look_at(Leaf x, Numbers of, Kind kind)
{
    int32_t first = bits_of(x.v[0]);
    Found all = {0};
    int32_t g_max = 0, p_max = 0, v_min = first, v_max = first;
    int small = 0, zeros = 0, fine = 0;
    for (int start = 0; start < x.n; start += SHORT) {
        float grads = 0, firsts = 0, seconds = 0, params = 0, updates = 0, ratios = 0, dots = 0;
        int stop = least(start + SHORT, x.n);
#pragma omp simd reduction(+ : grads, firsts, seconds, params, updates, ratios, dots, small, zeros) \
    reduction(| : fine) reduction(max : g_max, p_max, v_max) reduction(min : v_min)
        for (int j = start; j < stop; j++) {
            float g = x.g[j], m = x.m[j], v = x.v[j], p = x.p[j];
            float r = kind == ROOT ? sqrtf(v) : kind == ITSELF ? v : 1;
            float hat = of.hat * r;
            float wide = of.of_root * r + of.epsilon;
            float kept = hat < of.floor ? of.floor : hat;
            float inverse = 1 / (wide * kept);
            float u = (of.of_grad * g + of.of_first * m + of.inside * p) * (inverse * kept) + of.of_param * p;
            float t = g * (inverse * wide);
            updates += u * u;
            ratios += t * t;
            grads += g * g;
            firsts += m * m;
            seconds += v;
            params += p * p;
            dots += g * m;
            small += hat < of.low;
            zeros += (bits_of(g) & MAGNITUDE) == 0;
            fine |= (uint32_t)bits_of(v) - 1 < NORMAL - 1;
            g_max = largest(g_max, bits_of(g) & MAGNITUDE);
            p_max = largest(p_max, bits_of(p) & MAGNITUDE);
            v_min = least(v_min, bits_of(v));
            v_max = largest(v_max, bits_of(v));
        }
        all.grads += grads;
        all.firsts += firsts;
        all.seconds += seconds;
        all.params += params;
        all.updates += updates;
        all.ratios += ratios;
        all.dots += dots;
    }
    all.small = small;
    all.zeros = zeros;
    all.fine = fine;
    all.g_max = g_max;
    all.p_max = p_max;
    all.v_min = v_min;
    all.v_max = v_max;
    if (all.v_min < 0) { /* bits of negative numbers order the other way round */
        all.v_min = all.v_max = ordered(first);
        for (int j = 0; j < x.n; j++) {
            all.v_min = least(all.v_min, ordered(bits_of(x.v[j])));
            all.v_max = largest(all.v_max, ordered(bits_of(x.v[j])));
        }
    }
    return all;
}

/* How this thread computes with floats, and the same but that subnormal numbers are taken for zeros: each of them
 * would cost a hundred times what others do, and the moments of what gets no gradient any more stay subnormal. */
#ifdef __SSE__
enum { FLUSH_TO_ZERO = 0x8000, DENORMALS_ARE_ZEROS = 0x0040 };

static unsigned mode_now(void) { return _mm_getcsr(); }
static unsigned flushing(unsigned mode) { return mode | FLUSH_TO_ZERO | DENORMALS_ARE_ZEROS; }
static void set_mode(unsigned mode) { _mm_setcsr(mode); }
#else
static unsigned mode_now(void) { return 0; }
static unsigned flushing(unsigned mode) { return mode; }
static void set_mode(unsigned mode) { (void)mode; }
#endif

static double root_of(double v, Kind kind) { return kind == ROOT ? sqrt(v) : kind == ITSELF ? v : 1; }

/* What both quotients of an element are divided by, together. */
static double product(int32_t second, Numbers of, Kind kind)
{
    double r = root_of(number(ordered(second)), kind), hat = of.hat * r;
    return (of.of_root * r + of.epsilon) * (hat < of.floor ? of.floor : hat);
}

/* Whether it matters that subnormal second moments were taken for zeros. */
static int loses_seconds(Found all, Numbers of, Kind kind)
{
    return all.fine && product(NORMAL, of, kind) > (1 + 1e-7) * product(0, of, kind);
}

/* Whether a leaf has numbers that float cannot tell from infinity or zero, or none. */
static int is_beyond_float(Found all, Numbers of, Kind kind)
{
    return !(product(all.v_min, of, kind) > LEAST_PRODUCT) || !(product(all.v_max, of, kind) < MOST_PRODUCT)
        || loses_seconds(all, of, kind) || !(all.seconds < MOST) || !(all.grads < MOST) || !(all.firsts < MOST)
        || !(all.params < MOST) || !(all.updates < MOST) || !(all.ratios < MOST);
}

static void add(Found all, double *sums)
{
    sums[GRAD] += all.grads;
    sums[FIRST] += all.firsts;
    sums[SECOND] += all.seconds;
    sums[PARAM] += all.params;
    sums[UPDATE] += all.updates;
    sums[RMS_T] += all.ratios;
    sums[DOT] += all.dots;
    sums[SMALL] += all.small;
}

/* Add all sums of a leaf in double, and count what is not finite of the gradient and of the moments. */
static void add_exactly(Leaf x, Numbers of, Kind kind, double *sums, uint64_t *counts)
{
    double grads = 0, firsts = 0, seconds = 0, params = 0, updates = 0, ratios = 0, dots = 0;
    int small = 0, nonfinite = 0, lost = 0;
#pragma omp simd reduction(+ : grads, firsts, seconds, params, updates, ratios, dots, small, nonfinite, lost)
    for (int j = 0; j < x.n; j++) {
        double g = x.g[j], m = x.m[j], v = x.v[j], p = x.p[j];
        double r = root_of(v, kind), hat = of.hat * r;
        /* What the update does not depend on may well be infinite. */
        double u = (of.of_grad != 0 ? of.of_grad * g : 0) + (of.of_first != 0 ? of.of_first * m : 0)
            + (of.inside != 0 ? of.inside * p : 0);
        u = u / ((of.of_root != 0 ? of.of_root * r : 0) + of.epsilon) + (of.of_param != 0 ? of.of_param * p : 0);
        double t = g / (hat < of.floor ? of.floor : hat);
        grads += g * g;
        firsts += m * m;
        seconds += v;
        params += p * p;
        updates += u * u;
        ratios += t * t;
        dots += g * m;
        small += hat < of.low;
        nonfinite += !isfinite(g);
        lost += !isfinite(m) + !isfinite(v);
    }
    counts[NONFINITE] += (uint64_t)nonfinite;
    counts[LOST] += (uint64_t)lost;
    add((Found){grads, firsts, seconds, params, updates, ratios, dots, .small = small}, sums);
}

/* What tensors have in common. */
typedef struct {
    int64_t kinds[4];    /* how gradient, first and second moment and parameter are stored */
    uint8_t known[SUMS]; /* which of the sums are known */
    Numbers numbers;
} Common;

typedef struct {
    int64_t at[4]; /* addresses */
    int64_t size;
    const Common *common;
    Kind kind;
} Tensor;

/* What takes the place of memory: of numbers that are converted, and of those that are not there. */
typedef struct {
    float converted[4][LEAF], zeros[LEAF], ones[LEAF];
} Room;

static Leaf leaf_of(const Tensor *x, int64_t start, Room *room)
{
    const float *none[4] = {room->zeros, room->zeros, room->ones, room->zeros}, *column[4];
    int n = x->size - start < LEAF ? (int)(x->size - start) : LEAF;
    for (int k = 0; k < 4; k++)
        column[k] = x->at[k] ? read(x->at[k], x->common->kinds[k], start, n, room->converted[k]) : none[k];
    return (Leaf){column[0], column[1], column[2], column[3], n};
}

/* Whether a first moment is anything but zeros. */
static int has_first(const Tensor *x, Room *room)
{
    for (int64_t start = 0; x->at[1] && start < x->size; start += LEAF) {
        Leaf leaf = leaf_of(x, start, room);
        int32_t any = 0;
        for (int j = 0; j < leaf.n; j++)
            any |= bits_of(leaf.m[j]) & MAGNITUDE;
        if (any)
            return 1;
    }
    return 0;
}

/* Whether float has lost bits that matter: of `grad` and `param`, where these are more than zeros, of moments and
 * the update, and of second moments where some are so `fine` that they were taken for zeros. */
static int is_too_small(const Tensor *x, const double *sums, int grad, int fine, int param, Room *room)
{
    Numbers of = x->common->numbers;
    double few = LEAST * (double)x->size;
    int first = sums[FIRST] > 0 || has_first(x, room);
    int moves = (grad && of.of_grad != 0) || (first && of.of_first != 0)
        || (param && (of.of_param != 0 || of.inside != 0));
    return (grad && (sums[GRAD] < few || sums[RMS_T] < few)) || (first && sums[FIRST] < few)
        || (param && sums[PARAM] < few) || (moves && sums[UPDATE] < few)
        || (fine && sums[SECOND] < LEAST_SECOND * (double)x->size);
}

/* What is found of a tensor. */
typedef struct {
    double sums[SUMS];
    uint64_t counts[COUNTS];
} Result;

static Result look_through(const Tensor *x, unsigned mode, Room *room)
{
    const Numbers of = x->common->numbers;
    const Kind kind = x->kind;
    Result result = {{0}, {0}};
    double *sums = result.sums;
    uint64_t *counts = result.counts;
    int32_t g_max = 0, p_max = 0, v_min = INT32_MAX, v_max = INT32_MIN;
    int fine = 0;
    for (int64_t start = 0; start < x->size; start += LEAF) {
        Leaf leaf = leaf_of(x, start, room);
        set_mode(flushing(mode));
        Found all = kind == ROOT ? look_at(leaf, of, ROOT)
            : kind == ITSELF     ? look_at(leaf, of, ITSELF)
                                 : look_at(leaf, of, NONE);
        set_mode(mode);
        g_max = largest(g_max, all.g_max);
        p_max = largest(p_max, all.p_max);
        v_min = least(v_min, all.v_min);
        v_max = largest(v_max, all.v_max);
        counts[ZEROS] += (uint64_t)all.zeros;
        fine |= all.fine;
        if (is_beyond_float(all, of, kind))
            add_exactly(leaf, of, kind, sums, counts);
        else
            add(all, sums);
    }
    if (is_too_small(x, sums, g_max != 0, fine, p_max != 0, room)) {
        memset(sums, 0, sizeof result.sums);
        counts[NONFINITE] = counts[LOST] = 0;
        for (int64_t start = 0; start < x->size; start += LEAF)
            add_exactly(leaf_of(x, start, room), of, kind, sums, counts);
    }
    sums[GRAD_MAX] = number(g_max);
    sums[PARAM_MAX] = number(p_max);
    /* A NaN orders at either end, beyond the infinities. */
    int lost = v_max > bits_of(INFINITY) || v_min < ordered(bits_of(-INFINITY));
    sums[SECOND_MIN] = lost ? NAN : number(ordered(v_min));
    sums[SECOND_MAX] = lost ? NAN : number(ordered(v_max));
    if (!x->common->known[GRAD]) /* it was taken for zeros */
        counts[ZEROS] = counts[NONFINITE] = 0;
    return result;
}

/* Of `count` tensors which row of the results each has, its elements, the addresses of its gradient, first and
 * second moment and parameter (0 stands for zeros, and in place of a second moment for ones), and which of
 * the commons it has. `itself`: a second moment is no square. */
typedef struct {
    int64_t count;
    const int64_t *rows, *sizes, *at[4], *common_of;
    int64_t itself;
} Tensors;

static Tensor tensor(const Tensors *all, const Common *commons, int64_t i)
{
    Tensor x = {.size = all->sizes[i], .common = &commons[all->common_of[i]]};
    for (int k = 0; k < 4; k++)
        x.at[k] = all->at[k][i];
    x.kind = !x.at[2] ? NONE : all->itself ? ITSELF : ROOT;
    return x;
}

static void furnish(Room *room)
{
    memset(room->zeros, 0, sizeof room->zeros);
    for (int j = 0; j < LEAF; j++)
        room->ones[j] = 1;
}

/* Add up tensors: `numel` [rows], `sums` and `seen` [rows][SUMS], and `counts` [rows][COUNTS]. */
void add_up(const Tensors *all, const Common *commons, double *numel, double *sums, uint8_t *seen, uint64_t *counts)
{
    const unsigned mode = mode_now();
    Room room;
    furnish(&room);
    for (int64_t i = 0; i < all->count; i++) {
        const Tensor x = tensor(all, commons, i);
        const int64_t row = all->rows[i];
        const Result found = look_through(&x, mode, &room);
        numel[row] = (double)x.size;
        for (int k = 0; k < SUMS; k++)
            sums[row * SUMS + k] = x.common->known[k] ? found.sums[k] : 0;
        memcpy(seen + row * SUMS, x.common->known, sizeof x.common->known);
        memcpy(counts + row * COUNTS, found.counts, sizeof found.counts);
    }
    set_mode(mode); /* with the flags that were up */
}

/* Measure tensors: `stats` [rows][SUMS] as they are reported, `counts` [rows][COUNTS], and the norms of all
 * parameters and of all updates together. */
void measure(const Tensors *all, const Common *commons, float *stats, uint64_t *counts, double *norms)
{
    const unsigned mode = mode_now();
    Room room;
    furnish(&room);
    double params = 0, updates = 0;
    for (int64_t i = 0; i < all->count; i++) {
        const Tensor x = tensor(all, commons, i);
        const int64_t row = all->rows[i];
        const Result found = look_through(&x, mode, &room);
        double of[SUMS];
        for (int k = 0; k < SUMS; k++)
            of[k] = !x.common->known[k] ? NAN : is_mean(k) ? found.sums[k] / (double)x.size : found.sums[k];
        for (int k = 0; k < SUMS; k++)
            of[k] = is_root(k) ? sqrt(of[k]) : of[k];
        double cosine = of[DOT] / of[GRAD] / of[FIRST];
        of[DOT] = cosine > 1 ? 1 : cosine < -1 ? -1 : cosine;
        for (int k = 0; k < SUMS; k++)
            stats[row * SUMS + k] = (float)of[k];
        memcpy(counts + row * COUNTS, found.counts, sizeof found.counts);
        params += found.sums[PARAM];
        updates += x.common->known[UPDATE] ? found.sums[UPDATE] : 0;
    }
    norms[0] = sqrt(params);
    norms[1] = sqrt(updates);
    set_mode(mode); /* with the flags that were up */
}
