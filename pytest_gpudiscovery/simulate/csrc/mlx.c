/* libmlxc (SIM_MLX 1) and libmlx (0): from Ollama 0.14.3 on the binary opens the first one before main, in every process;
 * up to 0.17.7 by its bare name, so that LD_LIBRARY_PATH decides whether there is one. */
#include "sim.h"

#if SIM_MLX
int mlx_version(void);

SIM_EXPORT int mlx_metal_is_available(void)
{
    return mlx_version() < 0;
}
#else
SIM_EXPORT int mlx_version(void)
{
    return 30;
}
#endif
