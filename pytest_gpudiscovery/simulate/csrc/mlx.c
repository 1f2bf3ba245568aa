/* libmlxc (SIM_MLX 1) and libmlx (0) of Ollama 0.14.3 to 0.17.7 and from 0.18.0 on: the ollama binary opens the first one
 * before main, in every process. */
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
